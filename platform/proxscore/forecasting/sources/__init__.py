"""Where series come from: one file per kind of source, with its section beside what opens it."""
