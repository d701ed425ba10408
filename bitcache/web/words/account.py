"""Signing in, and a seller's account."""

ENGLISH = {
    "sign_in": "Sign in",
    "sign_out": "Sign out",
    "token": "Seller token",
    "token_hint": "It starts with bcs_ and was shown when your account was made.",
    "token_wrong": "This token is not valid here, or was revoked.",
}

FRENCH = {
    "sign_in": "Se connecter",
    "sign_out": "Se déconnecter",
    "token": "Jeton de vendeur",
    "token_hint": "Il commence par bcs_ et vous a été montré à la création du compte.",
    "token_wrong": "Ce jeton n’est pas valable ici, ou a été révoqué.",
}
