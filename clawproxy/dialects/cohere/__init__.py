"""Cohere's API v2, both sides: `/v2/chat` and `/v2/embed`.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers. Source: the
official Python SDK's models (cohere 7).
"""
