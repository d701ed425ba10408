"""The service, its command line and its pages: the only place that knows bytes and sats."""

VERSION = "0.1.0"
