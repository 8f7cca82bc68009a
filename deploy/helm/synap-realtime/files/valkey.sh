#!/bin/sh
# Run a Valkey server or a Sentinel under a stable name, where addresses change with each start.
#   valkey.sh server | sentinel    start it
#   valkey.sh check-server         fail unless the Sentinels call it the primary, or it is a replica of that
#                                  one that has caught up
#   valkey.sh check-sentinel       fail unless the Sentinel answers
#   valkey.sh check-process        fail unless the server waits for the Sentinels, or answers anything
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
waiting=$data/waiting  # this file is there before the server is started
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

# One line: the epoch of its configuration, the primary as name:port, the number of replicas, the flags.
ask_sentinel() {
    sentinel "$1" SENTINEL MASTER main | {
        while read -r field && read -r value; do
            case $field in
                ip) name=$value ;;
                port) number=$value ;;
                flags) flags=$value ;;
                config-epoch) epoch=$value ;;
                num-slaves) replicas=$value ;;
            esac
        done
        [ -z "${epoch:-}" ] || echo "$epoch $name:$number $replicas $flags"
    }
}

# The lines of all Sentinels that answer, the latest configuration first.
ask_sentinels() { for each in $SENTINELS; do ask_sentinel "$each" & done | sort -r -n; }

# The primary as name:port; nothing during a failover, or unless most of the Sentinels answer. One alone
# may know an earlier primary only, such as the one in this pod, which was down together with the server.
known_primary() {
    answers=$(ask_sentinels)
    set -- $SENTINELS
    [ "$(echo "$answers" | grep -c .)" -gt $(($# / 2)) ] || return 0
    case $answers in *failover_in_progress*) return 0 ;; esac
    echo "$answers" | head -n 1 | cut -d ' ' -f 2
}

# The number of replicas that the Sentinels have seen; 0 in a new installation.
known_replicas() {
    answer=$(ask_sentinels | cut -d ' ' -f 3 | sort -r -n | head -n 1)
    echo "${answer:-0}"
}

role() { server ROLE | head -n 1; }

# A server that took the role it had could be a second primary.
wait_for_primary() {
    waits=0
    while primary=$(known_primary) && [ -z "$primary" ]; do
        [ $((waits % 50)) != 0 ] || log "$SELF is not started: most Sentinels do not answer, or a failover runs; waiting"
        waits=$((waits + 1))
        sleep 0.2  # a Sentinel that has started gives the primary DOWN_AFTER_MS
    done
}

# An empty primary would make its replicas delete everything: let the Sentinels choose a replica first.
wait_for_successor() {
    end=$(($(date +%s) + wait_s))
    while [ "$primary" = "$SELF" ] && [ "$(date +%s)" -lt "$end" ]; do
        log "this primary has no data, and a replica may have it: waiting for a failover"
        sleep 1
        wait_for_primary
    done
}

start_server() {
    file=$data/valkey.conf
    : >"$waiting"
    wait_for_primary
    if [ "$primary" = "$SELF" ] && [ ! -e "$data/appendonlydir" ] && [ "$(known_replicas)" -gt 0 ]; then
        wait_for_successor
    fi
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
    rm "$waiting"
    log "starting $SELF; the primary is $primary"
    exec valkey-server "$file"
}

# The Sentinel keeps what it knows in its file. A file that is there already only gets the password.
start_sentinel() {
    file=$data/sentinel.conf
    if [ -s "$file" ]; then
        grep -v '^sentinel auth-pass ' "$file" >"$file.new" || true
    else
        primary=$(ask_sentinels | head -n 1 | cut -d ' ' -f 2)
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
    state=$(server INFO replication | tr -d '\r')
    case $state in
        *role:master*) follows=$SELF ;;
        *master_link_status:up*)
            follows=$(echo "$state" | sed -n -e 's/^master_host://p' -e 's/^master_port://p' | paste -s -d : -) ;;
        *) return 1 ;;
    esac
    [ "$(known_primary)" = "$follows" ]
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
    check-process) [ -e "$waiting" ] || [ -n "$(server PING)" ] ;;
    check-sentinel) [ "$(sentinel "$SELF" PING)" = PONG ] ;;
    hand-over) hand_over ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
