#!/bin/sh
# Run a Valkey server or a Sentinel under a stable name, where addresses change with each start.
#   valkey.sh server | sentinel    start it
#   valkey.sh check-server         fail unless it serves as the primary, or as a replica that has caught up
#   valkey.sh check-sentinel       fail unless the Sentinel answers
#   valkey.sh check-process        fail unless the server answers anything, such as that it loads its data
#   valkey.sh hand-over            before a server stops: if it is the primary, make a replica the primary
# Environment:
#   SELF             name:port of this server or Sentinel, as the others reach it
#   SERVERS          name:port of all servers; the first is the primary of a new installation
#   SENTINELS        name:port of all Sentinels
#   VALKEY_PASSWORD  the password of the servers; the Sentinels have none
#   VALKEY_CONFIG    a file with more settings of the server
#   DATA             a folder that lasts; default /data
#   DOWN_AFTER_MS    how long a primary does not answer until it is replaced; default 5000
set -eu
data=${DATA:-/data}
wait_s=60  # for a failover, with two more tries
umask 077

log() { echo "valkey.sh: $*" >&2; }
host() { echo "${1%:*}"; }
port() { echo "${1##*:}"; }

# The cli waits for ever for a machine that is gone.
cli() {
    to=$1
    shift
    timeout 3 valkey-cli -h "$(host "$to")" -p "$(port "$to")" "$@" 2>/dev/null
}
server() { REDISCLI_AUTH=$VALKEY_PASSWORD cli "$SELF" "$@"; }
sentinel() { REDISCLI_AUTH='' cli "$@"; }

# The primary as name:port, by the first Sentinel that answers; nothing if none does.
known_primary() {
    for each in $SENTINELS; do
        answer=$(sentinel "$each" SENTINEL GET-MASTER-ADDR-BY-NAME main | paste -s -d : -) || continue
        case $answer in *:[0-9]*) echo "$answer" && return ;; esac
    done
}

# The number of replicas that the Sentinels have seen; 0 in a new installation.
known_replicas() {
    for each in $SENTINELS; do
        answer=$(sentinel "$each" SENTINEL MASTER main | grep -A 1 -x num-slaves | tail -n 1) || continue
        case $answer in [0-9]*) echo "$answer" && return ;; esac
    done
    echo 0
}

role() { server ROLE | head -n 1; }

# An empty primary would make its replicas delete everything: let the Sentinels choose a replica first.
wait_for_successor() {
    end=$(($(date +%s) + wait_s))
    while [ "$(known_primary)" = "$SELF" ] && [ "$(date +%s)" -lt "$end" ]; do
        log "this primary has no data, and a replica may have it: waiting for a failover"
        sleep 1
    done
}

start_server() {
    file=$data/valkey.conf
    primary=$(known_primary)
    if [ "$primary" = "$SELF" ] && [ ! -e "$data/appendonlydir" ] && [ "$(known_replicas)" -gt 0 ]; then
        wait_for_successor
        primary=$(known_primary)
    fi
    # Without Sentinels, a server takes the role that it had; a new one that of a new installation.
    if [ -z "$primary" ] && [ -e "$file" ]; then
        primary=$(sed -n 's/^replicaof \(.*\) \(.*\)$/\1:\2/p' "$file" | tr -d '"')
        primary=${primary:-$SELF}
    fi
    primary=${primary:-${SERVERS%% *}}
    {
        cat "${VALKEY_CONFIG:-/dev/null}"
        echo "port $(port "$SELF")"
        echo "dir $data"
        echo "requirepass $VALKEY_PASSWORD"
        echo "masterauth $VALKEY_PASSWORD"
        echo "replica-announce-ip $(host "$SELF")"
        echo "replica-announce-port $(port "$SELF")"
        [ "$primary" = "$SELF" ] || echo "replicaof $(host "$primary") $(port "$primary")"
    } >"$file.new"
    mv "$file.new" "$file"
    log "starting $SELF; the primary is $primary"
    exec valkey-server "$file"
}

# The Sentinel keeps what it knows in its file. A file that is there already only gets the password.
start_sentinel() {
    file=$data/sentinel.conf
    if [ -s "$file" ]; then
        grep -v '^sentinel auth-pass ' "$file" >"$file.new" || true
    else
        primary=$(known_primary)
        primary=${primary:-${SERVERS%% *}}
        set -- $SENTINELS
        {
            echo "port $(port "$SELF")"
            echo "dir $data"
            echo "sentinel resolve-hostnames yes"
            echo "sentinel announce-hostnames yes"
            echo "sentinel announce-ip $(host "$SELF")"
            echo "sentinel announce-port $(port "$SELF")"
            echo "sentinel monitor main $(host "$primary") $(port "$primary") $(($# / 2 + 1))"
            echo "sentinel down-after-milliseconds main ${DOWN_AFTER_MS:-5000}"
            # If the Sentinels elect no leader, they try again after twice this time.
            echo "sentinel failover-timeout main 10000"
        } >"$file.new"
    fi
    echo "sentinel auth-pass main $VALKEY_PASSWORD" >>"$file.new"
    mv "$file.new" "$file"
    log "starting the Sentinel $SELF"
    exec valkey-server "$file" --sentinel
}

check_server() {
    server INFO replication | tr -d '\r' | grep -q -x -e role:master -e master_link_status:up
}

# A coordinated failover waits until the replica has every write. Valkey before 9 and Redis lack it.
hand_over() {
    [ "$(role)" = master ] || return 0
    for each in $SENTINELS; do
        [ "$(host "$each")" != "$(host "$SELF")" ] || continue  # it stops together with this server
        for how in COORDINATED ''; do
            # shellcheck disable=SC2086 # no argument, if empty
            answer=$(sentinel "$each" SENTINEL FAILOVER main $how) || continue
            [ "$answer" = OK ] || continue
            end=$(($(date +%s) + wait_s / 2))
            while [ "$(date +%s)" -lt "$end" ]; do
                [ "$(role)" != slave ] || return 0
                sleep 0.2
            done
            log "no failover within $((wait_s / 2)) s"
            return 0
        done
    done
    log "no Sentinel started a failover"
}

case ${1:-} in
    server) start_server ;;
    sentinel) start_sentinel ;;
    check-server) check_server ;;
    check-process) [ -n "$(server PING)" ] ;;
    check-sentinel) [ "$(sentinel "$SELF" PING)" = PONG ] ;;
    hand-over) hand_over ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
