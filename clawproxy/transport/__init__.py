"""The clients' side of I/O. Transports are given a `service.Service`; they never import the exchange.

Reading order: `connection` (one client connection and its loop of requests), `surfaces` (what is served where), `http` (the way
back of one answer), `wire` (reads and writes with their clocks), `hangup` (who notices that a client left), `websocket/` (the
other protocol on the same port).
"""
