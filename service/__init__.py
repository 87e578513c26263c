"""The command line and the HTTP service over an atlas; no search logic in here."""
