"""OpenAI Responses, both sides.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers; `tools` and
`items` say, for both directions, what a tool and an input item are in the vocabulary. `socket` is what the WebSocket mode adds.
"""
