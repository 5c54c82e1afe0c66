"""Ollama's own API, both sides: `/api/chat`, `/api/generate`, `/api/embed`, and the pages its clients look at first.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers. Source: the
official Python SDK's models (ollama 0.6), and docs/api.md of the server.
"""
