# SPDX-License-Identifier: MIT
# Sourced: install what is missing of packages.txt. Expects $top, the project's folder.

# packages_missing USE...: names of packages that are not installed
packages_missing() {
    local use package
    while read -r use package; do
        case " $* " in
        *" $use "*) dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package" ;;
        esac
    done <"$top/tests/lib/packages.txt"
}

# packages_install USE...: as root on a system with apt; elsewhere it says what would be needed
packages_install() {
    local missing backports=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "Not a Debian system: see tests/lib/packages.txt for what is needed."
        return 0
    fi
    mapfile -t missing < <(packages_missing "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "These packages are missing; as root: apt-get install ${missing[*]}"
        return 0
    fi
    echo "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # A third-party source that does not answer is no reason to stop: the installation below is.
    apt-get update -qq </dev/null || echo "apt-get update had errors; trying with what there is"
    # A newer QEMU where the administrator has allowed one, and then all of it.
    if apt-cache policy | grep -q 'n=bookworm-backports'; then
        case " ${missing[*]} " in
        *" qemu-system-x86 "*) backports=(qemu-{utils,system-x86,system-common,system-data}/bookworm-backports) ;;
        *" qemu-utils "*) backports=(qemu-utils/bookworm-backports) ;;
        esac
    fi
    # Nothing that is there has to go for it.
    apt-get install -y -qq -o DPkg::Use-Pty=0 --no-install-recommends --no-remove "${missing[@]}" "${backports[@]}" \
        </dev/null >/dev/null
}
