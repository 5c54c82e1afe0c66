"""Google's Gemini API (`generateContent`), both sides.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers.
"""
