#!/usr/bin/env bash
# Runs a command in an image's file system the way compose.yaml asks Docker to: read-only root, /tmp in memory, user
# 10001, no capabilities, no new privileges, its own processes with the command as process 1. The network is the host's.
#   deploy/image/contained.sh ROOT [-v FROM:TO[:...]]... [-e NAME=VALUE]... -- COMMAND...
# Volumes are writable. `pgrep -P` of this script's process finds process 1, which `nsenter` enters. Needs root.
set -euo pipefail

root="$1"
shift
volumes=()
variables=()
while [ "${1:-}" != -- ]; do
    case "$1" in
        -v) volumes+=("$2") ;;
        -e) variables+=("$2") ;;
        *) echo "unknown: $1" >&2 && exit 1 ;;
    esac
    shift 2
done
shift

# shellcheck disable=SC2016
exec unshare --mount --pid --ipc --uts --fork --kill-child=SIGKILL bash -euc '
    root="$1" volumes="$2" variables="$3"
    shift 3
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount --rbind /dev "$root/dev"
    for file in /etc/resolv.conf /etc/hosts; do
        [ -e "$root$file" ] && mount --bind "$file" "$root$file"
    done
    for volume in $volumes; do
        IFS=: read -r from to _ <<<"$volume"
        if [ -d "$from" ]; then mkdir -p "$root$to"; else install -D /dev/null "$root$to"; fi
        mount --bind "$from" "$root$to"
    done
    mount -o remount,bind,ro "$root"
    # What the image itself sets comes from its ENV; here it is given by hand.
    exec env -i $variables chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups \
        --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"
' contained "$root" "${volumes[*]:-}" "${variables[*]:-}" "$@"
