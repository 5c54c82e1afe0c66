"""Anthropic Messages, both sides: `POST /v1/messages` and `/v1/messages/count_tokens`.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers; `words` holds
what both sides say.
"""
