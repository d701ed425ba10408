"""What sellers and buyers run: upload, pay, download, verify. Only availability is the server's to give."""
