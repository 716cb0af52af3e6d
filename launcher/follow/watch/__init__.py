"""A run on the whole terminal, brought up to date while it goes on."""
