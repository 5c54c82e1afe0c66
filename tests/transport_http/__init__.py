"""The clients' HTTP side over real sockets. Set CLAWPROXY_TEST_TARGET (`host:port`), CLAWPROXY_TEST_KEY and CLAWPROXY_TEST_MODEL
to run the corpus (`test_corpus.py`) against a gateway that is already up instead of the small service of `support.py`."""
