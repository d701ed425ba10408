"""What sellers and buyers run: upload, pay, download, verify. Trusts the server with nothing but availability."""
