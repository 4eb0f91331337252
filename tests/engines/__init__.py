"""Real schedulers, started on this machine by the tests that need them."""
