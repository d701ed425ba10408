"""A bitcoin world to play with: install a node, start, mine, reorganise, pay."""
