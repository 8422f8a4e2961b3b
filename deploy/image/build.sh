#!/usr/bin/env bash
# Builds and tries an image where there is no Docker: buildah in a chroot, on a base made by debootstrap.
#   deploy/image/build.sh base            a Debian with Python, from the distribution's archive
#   deploy/image/build.sh cpu|cuda        the image, on that base
#   deploy/image/build.sh try             runs the CPU image: commands, migrations, gateway and worker until healthy, a job
# Environment: SUITE (bookworm), MIRROR (http://deb.debian.org/debian), VOLUMES (more -v arguments for the build: pip's
# configuration, a folder of wheels); for try DATABASE_URL, and WEIGHTS, a folder with yolov8n.pt (else it is pulled).
set -euo pipefail
cd "$(dirname "$0")/../.."

SUITE="${SUITE:-bookworm}"
MIRROR="${MIRROR:-http://deb.debian.org/debian}"
read -ra MOUNTS <<<"${VOLUMES:-}"
BASE=localhost/aiworker-base:"$SUITE"
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}"

make_base() {
    local root
    root="$(mktemp -d)"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$SUITE" "$root" "$MIRROR" >&2
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    local container
    container="$(buildah from scratch)"
    buildah add -q "$container" "$root" /
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd /bin/bash "$container"
    buildah commit -q --rm "$container" "$BASE"
    rm -rf "$root"
}

build() {
    buildah bud --layers=false --format docker "${MOUNTS[@]}" --build-arg BASE="$BASE" \
        --file "Dockerfile.$1" --tag "localhost/aiworker:$1" .
    buildah images "localhost/aiworker:$1"
}

try_it() {
    : "${DATABASE_URL:?a PostgreSQL that the container can reach}"
    local container
    container="$(buildah from localhost/aiworker:cpu)"
    # shellcheck disable=SC2064
    trap "buildah rm $container >/dev/null" EXIT
    local weights=()
    [ -n "${WEIGHTS:-}" ] && weights=(-v "$WEIGHTS:/weights:ro" --env YOLO_MODEL=/weights/yolov8n.pt)
    inside() { buildah run --user 10001 "${weights[@]}" --env DATABASE_URL="$DATABASE_URL" "$@"; }
    inside "$container" -- aiworker --version
    inside "$container" -- sh -c 'test "$(id -u)" = 10001 && ! touch /opt/aiworker/x 2>/dev/null && touch /tmp/x && echo "not root, and the program is not ours to change"'
    inside "$container" -- aiworker migrate
    [ -n "${WEIGHTS:-}" ] || inside "$container" -- aiworker models pull yolov8n
    inside --env HOST=127.0.0.1 --env PORT=18080 --env WORKER_PORT=13001 --env SUPABASE_SERVICE_ROLE_KEY=try "$container" -- bash -c '
        tini -- aiworker gateway & gateway=$!
        tini -- aiworker worker & worker=$!
        for process in 18080 13001; do
            for _ in $(seq 120); do
                HEALTH_URL=http://127.0.0.1:$process/health python /opt/aiworker/healthcheck.py >/dev/null && break
                sleep 0.5
            done
            HEALTH_URL=http://127.0.0.1:$process/health python /opt/aiworker/healthcheck.py
            echo "healthy: $process"
        done
        aiworker enqueue sofia_text --text "200 g de arroz" --wait --gateway http://127.0.0.1:18080
        kill -TERM $gateway $worker
        wait $gateway && wait $worker && echo "both ended by SIGTERM with exit code 0"'
}

case "${1:-}" in
    base) make_base ;;
    cpu | cuda) build "$1" ;;
    try) try_it ;;
    *)
        sed -n '2,7p' "$0"
        exit 1
        ;;
esac
