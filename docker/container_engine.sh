#!/usr/bin/env bash
# A private container engine with Compose, and stand-ins for base images, where no image registry is reached: on Debian, as
# root, with apt. Nothing is installed: Debian's packages are unpacked below DIR, and the engine listens on a socket there.
#
#     source docker/container_engine.sh
#     container_engine_up DIR       start it; sets PATH, DOCKER_HOST and DCOMPOSE   (about 20 s the first time)
#     container_engine_base         build python:3.11-slim-bookworm                 (about 90 s the first time)
#     docker build --network host -f docker/api.Dockerfile -t care-sweep-api .
#     container_engine_down         stop it; images stay below DIR
#
# The base image stands in for the official one of its name: Debian's python3.11 with venv and pip, and this machine's
# certificates, so that pip works in a build. It is larger than the official one.

_ce_mirror() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2 == "bookworm" { print $1; exit }'; }

# docker.io and what it runs from this release, Compose 2 from the next one, by a list of sources of our own.
_ce_fetch() {
    mkdir -p "$CE/debs" "$CE/lists/partial" "$CE/root"
    apt-get update -qq || return 1
    (cd "$CE/debs" && apt-get download -qq docker.io containerd runc tini iptables libip4tc2 libip6tc2 libxtables12 \
        libnftnl11 libmnl0 libnfnetlink0 libnetfilter-conntrack3 2>/dev/null) || return 1
    printf 'deb [trusted=yes] %s trixie main\n' "$(_ce_mirror)" >"$CE/trixie.list"
    local next=(-o "Dir::Etc::sourcelist=$CE/trixie.list" -o Dir::Etc::sourceparts=/dev/null)
    next+=(-o "Dir::State::Lists=$CE/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    apt-get "${next[@]}" update -qq || return 1
    (cd "$CE/debs" && apt-get "${next[@]}" download -qq docker-compose 2>/dev/null) || return 1
    for package in "$CE"/debs/*.deb; do dpkg -x "$package" "$CE/root" || return 1; done
    # Names of containers are resolved by a rule in each container's own network; the machine's rules are left alone.
    cat >"$CE/root/usr/sbin/iptables" <<END
#!/bin/sh
export LD_LIBRARY_PATH=$CE/root/usr/lib/x86_64-linux-gnu XTABLES_LIBDIR=$CE/root/usr/lib/x86_64-linux-gnu/xtables
exec $CE/root/usr/sbin/xtables-nft-multi iptables "\$@"
END
    chmod +x "$CE/root/usr/sbin/iptables"
}

container_engine_up() {
    CE=$(realpath -m "$1")
    mkdir -p "$CE"
    [ -x "$CE/root/usr/sbin/iptables" ] || _ce_fetch || return 1
    export PATH="$CE/root/usr/sbin:$CE/root/usr/bin:$PATH" DOCKER_HOST="unix://$CE/socket" DOCKER_BUILDKIT=1
    export DCOMPOSE="$CE/root/usr/libexec/docker/cli-plugins/docker-compose"
    docker info >/dev/null 2>&1 && return 0
    # Without rules of the machine's firewall a build reaches a network only as the machine itself (--network host).
    dockerd --data-root "$CE/data" --exec-root "$CE/exec" --pidfile "$CE/pid" --host "$DOCKER_HOST" \
        --iptables=false --ip6tables=false --storage-driver overlay2 >"$CE/log" 2>&1 &
    for _ in $(seq 60); do
        docker info >/dev/null 2>&1 && return 0
        sleep 0.5
    done
    echo "the container engine did not start: see $CE/log" >&2
    return 1
}

container_engine_base() {
    docker image inspect python:3.11-slim-bookworm >/dev/null 2>&1 && return 0
    local folder status
    folder=$(mktemp -d)
    command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null || return 1
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        bookworm "$folder/base.tar" "$(_ce_mirror)" || return 1
    cp /etc/ssl/certs/ca-certificates.crt "$folder/"
    cat >"$folder/Dockerfile" <<'END'
FROM scratch
ADD base.tar /
COPY ca-certificates.crt /etc/ssl/certs/
RUN printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >/etc/pip.conf \
    && ln -s /usr/bin/python3 /usr/local/bin/python
CMD ["python"]
END
    docker build --quiet --tag python:3.11-slim-bookworm "$folder" >/dev/null
    status=$?
    rm -rf "$folder"
    return $status
}

container_engine_down() {
    [ ! -s "$CE/pid" ] || { kill "$(cat "$CE/pid")" && while [ -e "$CE/pid" ]; do sleep 0.2; done; }
    ip link delete docker0 2>/dev/null
    umount "$CE/exec/netns/default" 2>/dev/null
    return 0
}
