"""One module per noun; each is imported when one of its verbs runs."""
