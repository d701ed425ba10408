"""Pages for people: plain, server-rendered, without a line of JavaScript."""
