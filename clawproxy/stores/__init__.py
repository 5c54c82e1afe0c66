"""Where state lives: one interface (`base`), an in-memory store and an embedded one, under one conformance suite."""
