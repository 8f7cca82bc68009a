#!/bin/sh
# Copy a renewed certificate for the room server. certbot runs this hook as root, from
# /etc/letsencrypt/renewal-hooks/deploy/synap-realtime. The server reads the files again when they change.
# The first time, run it by hand: RENEWED_LINEAGE=/etc/letsencrypt/live/rooms.example.com sh letsencrypt-hook.sh
set -eu
domain=${SYNAP_REALTIME_DOMAIN:-rooms.example.com}
folder=${SYNAP_REALTIME_TLS_FOLDER:-/etc/synap-realtime}
group=${SYNAP_REALTIME_GROUP:-synap-realtime}

[ "$(basename "$RENEWED_LINEAGE")" = "$domain" ] || exit 0
# The key first: the server does not use a key without its certificate, and keeps the previous pair.
for name in privkey.pem fullchain.pem; do
    install -m 0640 -g "$group" "$RENEWED_LINEAGE/$name" "$folder/.$name.new"
    mv -f "$folder/.$name.new" "$folder/$name"
done
