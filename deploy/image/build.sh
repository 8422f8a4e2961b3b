#!/usr/bin/env bash
# Builds and tries an image where there is no Docker: buildah in a chroot, on a base made by debootstrap.
#   deploy/image/build.sh base            a Debian with Python, from the distribution's archive
#   deploy/image/build.sh cpu|cuda        the image, on that base
#   deploy/image/build.sh try             runs the CPU image as compose.yaml would: migrations, weights, gateway and worker
#                                         until healthy, a job, SIGTERM (needs root)
# Environment: SUITE (bookworm), MIRROR (debootstrap's own), VOLUMES (more -v arguments: pip's configuration, a
# folder of wheels); for try DATABASE_URL, and WEIGHTS, a folder with yolov8n.pt (else it is pulled).
set -euo pipefail
cd "$(dirname "$0")/../.."

SUITE="${SUITE:-bookworm}"
read -ra MOUNTS <<<"${VOLUMES:-}"
BASE=localhost/aiworker-base:"$SUITE"
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}"

make_base() {
    local root
    root="$(mktemp -d)"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$SUITE" "$root" ${MIRROR:+"$MIRROR"} >&2
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

# By the name of a process: the process 1 of its container, and what waits for it outside.
declare -A first outer

try_it() {
    : "${DATABASE_URL:?a PostgreSQL that the container can reach}"
    container="$(buildah from localhost/aiworker:cpu)"
    root="$(buildah mount "$container")"
    models="$(mktemp -d)"
    chmod 755 "$models" && chown 10001 "$models"
    trap 'kill -KILL "${first[@]}" $(jobs -p) 2>/dev/null || true; wait; buildah rm "$container" >/dev/null; rm -rf "$models"' EXIT
    local variable
    with=(-v "$models:/models" -e DATABASE_URL="$DATABASE_URL" -e YOLO_MODEL="${YOLO_MODEL:-yolov8n}")
    while read -r variable; do
        [ -n "$variable" ] && with+=(-e "$variable")
    done < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container")
    [ -n "${WEIGHTS:-}" ] && cp "$WEIGHTS"/*.pt "$models"

    inside -- aiworker --version
    inside -- sh -c 'test "$(id -u)" = 10001 && rm "$(mktemp)" "$(mktemp -p /models)" || exit 1
        for place in / /opt/aiworker /var/lib/aiworker /etc; do touch "$place/x" 2>/dev/null && exit 1; done
        grep -q "^CapBnd:.0*$" /proc/1/status && grep -q "^NoNewPrivs:.1" /proc/1/status
        echo "user 10001, read-only root, no capabilities; temporary files and /models can be written"'
    inside -- aiworker migrate
    inside "${MOUNTS[@]}" -- aiworker models pull yolov8n
    start gateway 18080 -e SUPABASE_SERVICE_ROLE_KEY=try
    start worker 13001
    # shellcheck disable=SC2016
    inside -e SUPABASE_SERVICE_ROLE_KEY=try -- sh -c '
        photo="$(echo /opt/aiworker/lib/python3*/site-packages/aiworker/cli/data/fruits.jpg)"
        aiworker enqueue sofia_image --photo "$photo" --wait --gateway http://127.0.0.1:18080'
    stop gateway
    stop worker
}

inside() {
    deploy/image/contained.sh "$root" "${with[@]}" "$@"
}

# start NAME PORT [-e ...]: until the image's own health check says yes, run in the container as Docker would.
start() {
    local name="$1" port="$2" probe
    mapfile -t probe < <(buildah inspect --format '{{range .Docker.Config.Healthcheck.Test}}{{println .}}{{end}}' "$container")
    shift 2
    (exec deploy/image/contained.sh "$root" "${with[@]}" -e HOST=127.0.0.1 -e PORT=18080 -e WORKER_PORT=13001 "$@" -- \
        tini -- aiworker "$name" 2>"$models/$name.log") &
    outer[$name]=$!
    for _ in $(seq 120); do
        first[$name]="$(pgrep -P "${outer[$name]}" || true)"
        if [ -n "${first[$name]}" ] && nsenter --target "${first[$name]}" --mount --pid --root --wd --setuid 10001 \
            env HEALTH_URL="http://127.0.0.1:$port/health" "${probe[@]:1}" >/dev/null 2>&1; then
            echo "healthy: $name, process 1 is $(tr '\0' ' ' <"/proc/${first[$name]}/cmdline")"
            return
        fi
        sleep 0.5
    done
    cat "$models/$name.log"
    return 1
}

# stop NAME: SIGTERM to its process 1, which must end with 0.
stop() {
    kill -TERM "${first[$1]}"
    wait "${outer[$1]}"
    echo "ended by SIGTERM with exit code 0: $1"
}

case "${1:-}" in
    base) make_base ;;
    cpu | cuda) build "$1" ;;
    try) try_it ;;
    *)
        sed -n '2,8p' "$0"
        exit 1
        ;;
esac
