# ruff: noqa: E501 - one sentence, one line
"""What is sold per chunk: on the offer's page, and on its seller's."""

ENGLISH = {
    # The offer.
    "per_chunk": "per chunk of 1 MiB",
    "per_chunk_whole": "all of it: {whole_sat} sat",
    "per_chunk_or": "or",
    "paid_to_metered": "per chunk: the operator of this server, who owes it to the seller",
    "kept_metered": "only while they are on sale: download all of them now",
    "metered_title": "Pay while it downloads",
    "metered_title_or": "Or pay while it downloads",
    "metered_hint": "Each chunk costs {price} as it arrives; all {chunks} of them come to {whole_sat} sat. Stop whenever you like: you have paid for what arrived. It works with the command line.",
    "metered_open": "Once for this server, open a channel: a deposit from any wallet. What you do not spend comes back to your address.",
    "metered_address": "YOUR_ADDRESS",
    "metered_get": "Then get the files, with your whole link:",
    "metered_fees": "Opening and closing a channel costs the network’s fee, once each; you see it before you pay. From the second or third purchase on, that is less than paying for each one.",
    "metered_off": "Nothing is sold per chunk here at the moment: this server opens no channels.",
    "copy_command": "Copy the command",
    "e_metered-only": "This is sold per chunk alone, with the command line.",
    # The seller's pages.
    "offer_per_chunk": "{price} per chunk",
    "offer_price_too": "Price of the whole in sat",
    "o_e_metered": "Nobody pays per chunk for what is free as a whole.",
    "m_channels": "In channels",
    "m_channels_hint": "Sold per chunk. It is yours once the channels are closed, and that is {depth} blocks deep; the operator closes them.",
}

FRENCH = {
    "per_chunk": "par morceau de 1 Mio",
    "per_chunk_whole": "le tout : {whole_sat} sat",
    "per_chunk_or": "ou",
    "paid_to_metered": "par morceau : l’opérateur de ce serveur, qui le doit au vendeur",
    "kept_metered": "seulement tant qu’ils sont en vente : téléchargez-les tous maintenant",
    "metered_title": "Payer pendant le téléchargement",
    "metered_title_or": "Ou payer pendant le téléchargement",
    "metered_hint": "Chaque morceau coûte {price} quand il arrive ; tous les {chunks} font {whole_sat} sat. Arrêtez quand vous voulez : vous avez payé ce qui est arrivé. Cela se fait en ligne de commande.",
    "metered_open": "Une fois pour ce serveur, ouvrez un canal : un dépôt depuis n’importe quel portefeuille. Ce que vous ne dépensez pas revient à votre adresse.",
    "metered_address": "VOTRE_ADRESSE",
    "metered_get": "Puis obtenez les fichiers, avec votre lien entier :",
    "metered_fees": "Ouvrir et fermer un canal coûte les frais du réseau, une fois chacun ; vous les voyez avant de payer. Dès le deuxième ou troisième achat, c’est moins que de payer chacun.",
    "metered_off": "Rien n’est vendu par morceau ici en ce moment : ce serveur n’ouvre pas de canaux.",
    "copy_command": "Copier la commande",
    "e_metered-only": "Ceci se vend seulement par morceau, en ligne de commande.",
    "offer_per_chunk": "{price} par morceau",
    "offer_price_too": "Prix du tout en sat",
    "o_e_metered": "Personne ne paie par morceau ce qui est gratuit en entier.",
    "m_channels": "Dans des canaux",
    "m_channels_hint": "Vendu par morceau. C’est à vous une fois les canaux fermés, à {depth} blocs de profondeur ; l’opérateur les ferme.",
}
