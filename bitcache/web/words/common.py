# ruff: noqa: E501 - one sentence, one line
"""Errors, and what stands on every page."""

ENGLISH = {
    # Errors.
    "error_title": "That did not work",
    "e_not-found": "There is nothing here. Check the link: it may be cut off.",
    "e_offer-unavailable": "This offer takes no new payments. What you have paid for stays yours.",
    "e_seller-not-payable": "The seller has not set a wallet yet. Tell the seller.",
    "e_too-many-invoices": "Too many unpaid payments are open. Pay one of them, or wait until they expire.",
    "e_too-many-requests": "Too many requests. Wait a little.",
    "e_node-offline": "The bitcoin node of this server does not answer. Do not pay now; try again in a minute.",
    "e_taken-down": "The operator has taken these files down. If you paid, the seller owes you the money back.",
    "e_invoice-not-renewable": "There is no new price for this payment: it is paid, or still holds its price, or is sold no more.",
    "e_registration-closed": "This server opens no accounts by itself. Ask its operator for one.",
    "e_form-expired": "This form is too old, or came from another site. Go back, reload the page and try again.",
    "e_other": "Something went wrong on the server. Try again in a minute.",
    "back": "Back",
    # All pages.
    "language": "Language",
    "places": "Places",
    "place_upload": "Sell",
    "place_dashboard": "Earnings",
    "place_account": "Account",
    "operator": "This server is run by {name}.",
    "operator_terms": "Terms",
    "operator_contact": "Contact",
    "trust": "The server sees sizes and who buys what, never the files or their names.",
}

FRENCH = {
    "error_title": "Cela n’a pas marché",
    "e_not-found": "Il n’y a rien ici. Vérifiez le lien : il est peut-être coupé.",
    "e_offer-unavailable": "Cette offre ne prend plus de paiements. Ce que vous avez payé reste à vous.",
    "e_seller-not-payable": "Le vendeur n’a pas encore réglé de portefeuille. Prévenez-le.",
    "e_too-many-invoices": "Trop de paiements sont en attente. Payez-en un, ou attendez qu’ils expirent.",
    "e_too-many-requests": "Trop de demandes. Attendez un peu.",
    "e_node-offline": "Le nœud bitcoin de ce serveur ne répond pas. Ne payez pas ; réessayez dans une minute.",
    "e_taken-down": "L’opérateur a retiré ces fichiers. Si vous avez payé, le vendeur vous doit l’argent.",
    "e_invoice-not-renewable": "Il n’y a pas de nouveau prix pour ce paiement : il est payé, tient encore son prix, ou n’est plus en vente.",
    "e_registration-closed": "Ce serveur n’ouvre pas de comptes de lui-même. Demandez-en un à son opérateur.",
    "e_form-expired": "Ce formulaire est trop ancien, ou vient d’un autre site. Revenez, rechargez la page et réessayez.",
    "e_other": "Quelque chose n’a pas marché sur le serveur. Réessayez dans une minute.",
    "back": "Retour",
    "language": "Langue",
    "places": "Rubriques",
    "place_upload": "Vendre",
    "place_dashboard": "Gains",
    "place_account": "Compte",
    "operator": "Ce serveur est tenu par {name}.",
    "operator_terms": "Conditions",
    "operator_contact": "Contact",
    "trust": "Le serveur voit les tailles et qui achète quoi, jamais les fichiers ni leurs noms.",
}
