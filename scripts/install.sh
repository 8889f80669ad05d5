#!/bin/sh
# Install klein-setup for this user on Linux or macOS, and start it: sh install.sh [arguments of klein-setup]
#
# No Python is needed: uv makes an environment for klein-setup alone, with a Python that is here or that it fetches.
# Where there is no uv, its wheel is fetched from PyPI, and nothing in it is run before its SHA-256 is the one written
# below.  What is fetched goes to a temporary folder that is removed however this ends; if klein-setup cannot be
# installed, nothing else is left either.
#
# KLEIN_SETUP_PACKAGE   what to install: klein-setup (the default), klein-setup==1.0, a wheel, or a checkout
# KLEIN_SETUP_UV_FROM   the address of a folder with the wheel of uv, instead of PyPI's
# UV_DEFAULT_INDEX      uv's own variable: the package index that klein-setup comes from
#
# Statuses: 3 this computer, 4 disk, 5 network, 7 wrong checksum, 8 a program failed or is missing; then klein-setup's.
set -eu

fail() { # status, what happened, what to do
    printf 'error: %s\n  hint: %s\n' "$2" "$3" >&2
    exit "$1"
}

# Set `address` and `sha256` of the wheel of uv for this computer.
choose_wheel() {
    machine=$(uname -s)-$(uname -m)
    if [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" = 1 ]; then
        machine=Darwin-arm64 # a shell under Rosetta
    elif ldd --version 2>&1 | grep -q -i musl; then
        machine="$machine with musl"
    fi
    case $machine in
    # From uv.lock, by `python3 scripts/check_lock.py --write`.
    Linux-x86_64)
        address=https://files.pythonhosted.org/packages/3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f/uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
        sha256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
        ;;
    Linux-aarch64)
        address=https://files.pythonhosted.org/packages/57/15/94b6cd62ac3ff6550288328e8035288875197cbc183f51554b266a69877b/uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl
        sha256=5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe
        ;;
    Darwin-arm64)
        address=https://files.pythonhosted.org/packages/f3/a7/a8d7b074798c7fb3b26b37584b8fe2e29df2ccdc24ce7902caab2a53edbf/uv-0.13.9-py3-none-macosx_11_0_arm64.whl
        sha256=66c512266d633bef48384a1f53003f41f2a8e7b36fe6e7fbfd3e0fd52d96fa63
        ;;
    Darwin-x86_64)
        address=https://files.pythonhosted.org/packages/1e/db/08e9ef4879bd667e6d7b4705e594e5bd3e4585f10fc63cb16b9fa2fac63e/uv-0.13.9-py3-none-macosx_10_12_x86_64.whl
        sha256=c16ed11e013557536b3e60065f1b912f6407bd6518e041b961e23ef9e6b4fbf5
        ;;
    *)
        fail 3 "klein-setup does not run on this computer ($machine): there is no PyTorch for it." \
            "It runs on Linux with glibc (x86_64, aarch64), macOS, and Windows (install.ps1)."
        ;;
    esac
    address=${KLEIN_SETUP_UV_FROM:-${address%/*}}/${address##*/}
}

# Set `download`, `hash` and `unpack` to the first of the programs that is here.
choose_programs() {
    download=$(first_of curl wget) || fail 8 "There is neither curl nor wget here; one is needed to fetch uv." \
        "Install curl, or uv itself, and run this again (Debian and Ubuntu: apt-get install curl)."
    hash=$(first_of sha256sum shasum openssl) || fail 8 "There is none of sha256sum, shasum and openssl here." \
        "Install one, so that uv can be checked, and run this again; sha256sum is in coreutils."
    unpack=$(first_of unzip bsdtar busybox python3) || fail 8 "There is nothing here that unpacks a zip file." \
        "Install unzip, and run this again (Debian and Ubuntu: apt-get install unzip)."
}

first_of() {
    for name in "$@"; do
        if command -v "$name" >/dev/null 2>&1; then
            echo "$name"
            return 0
        fi
    done
    return 1
}

# Fetch uv into the temporary folder and check it; set `uv`.
bring_uv() {
    choose_wheel
    choose_programs
    wheel=$temporary/uv.whl
    printf 'Fetching uv, which is not here, from %s\n' "$address" >&2
    case $download in
    curl) curl -fsSL -o "$wheel" "$address" ;;
    wget) wget -q -O "$wheel" "$address" ;;
    esac || fail 5 "uv could not be fetched from $address." "Look at the network, and run this again."
    case $hash in
    sha256sum) found=$(sha256sum "$wheel") ;;
    shasum) found=$(shasum -a 256 "$wheel") ;;
    openssl) found=$(openssl dgst -r -sha256 "$wheel") ;;
    esac
    [ "${found%% *}" = "$sha256" ] || fail 7 \
        "What came from $address is not the file that is expected: its SHA-256 is ${found%% *}, not $sha256." \
        "It was cut off or changed on its way, and was not used. Run this again."
    case $unpack in
    unzip) unzip -q "$wheel" -d "$temporary/files" ;;
    bsdtar) mkdir "$temporary/files" && bsdtar -x -f "$wheel" -C "$temporary/files" ;;
    busybox) busybox unzip -q "$wheel" -d "$temporary/files" ;;
    python3) python3 -m zipfile -e "$wheel" "$temporary/files" ;;
    esac || fail 4 "uv could not be unpacked in $temporary." "Free 100 MB there, or name another folder with TMPDIR."
    for uv in "$temporary"/files/uv-*.data/scripts/uv; do
        chmod +x "$uv" "${uv}x" # not everything that unpacks a zip file does
    done
}

# Install klein-setup with a uv that was brought: without a cache, and on failure without what uv made on the way.
install_with_brought_uv() {
    for folder in "$("$uv" python dir)" "$("$uv" tool dir)" "$bin"; do
        [ -e "$folder" ] && continue
        while [ ! -e "${folder%/*}" ]; do
            folder=${folder%/*}
        done
        made="$made$folder
"
    done
    # certificates of the system, as the program that fetched uv has them
    install_with "$uv" --system-certs --cache-dir "$temporary/cache" --link-mode copy && made=
}

install_with() { # uv, more options
    uv=$1
    shift
    "$uv" tool install --quiet --upgrade "$@" "${KLEIN_SETUP_PACKAGE:-klein-setup}"
}

clean_up() {
    rm -rf "$temporary"
    printf %s "$made" | while read -r folder; do rm -rf "$folder"; done
}

main() {
    made=
    temporary=$(mktemp -d) || fail 4 "No temporary folder could be made." "Name one that can be written with TMPDIR."
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    is_brought=no
    uv=$(first_of uv "${XDG_BIN_HOME:-${HOME:-}/.local/bin}/uv") || is_brought=yes
    if [ "$is_brought" = yes ]; then
        bring_uv
    fi
    bin=$("$uv" tool dir --bin)
    if [ "$is_brought" = yes ]; then
        install_with_brought_uv
    else
        install_with "$uv"
    fi || fail 8 "uv could not install klein-setup; it says why above." "Run this again once that is solved."
    if [ "$is_brought" = yes ]; then # klein-setup uses it, and is updated and removed with it
        mv "$uv" "${uv}x" "$bin"
        uv=$bin/uv
        printf 'Installed: uv, uvx and klein-setup, in %s\n' "$bin" >&2
    fi
    case :$PATH: in
    *:"$bin":*) ;;
    *) printf '%s is not on PATH; this puts it there: "%s" tool update-shell\n' "$bin" "$uv" >&2 ;;
    esac
    clean_up
    exec "$bin/klein-setup" "$@"
}

main "$@" # the last line, so that a script that was cut off does nothing
