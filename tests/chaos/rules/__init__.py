"""One module for each kind of promise: what of a history and of the server afterwards breaks it. All are pure."""
