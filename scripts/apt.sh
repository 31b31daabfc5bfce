# Read by the scripts that install a program for the tests where that is possible without asking.
# shellcheck shell=bash

skip() {
    echo "$program: $1; install it yourself, or $skipped are skipped" >&2
    exit 0
}

# ready_to_install PROGRAM "the tests that are skipped without it": sets `as_root`, or says aloud why not and ends.
ready_to_install() {
    program=$1 skipped=$2
    command -v apt-get >/dev/null || skip "not installed, and there is no apt-get"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || skip "not installed, and installing needs root"
        as_root=(sudo -n)
    fi
    echo "$program: installing with apt-get"
    "${as_root[@]}" apt-get update -qq || skip "apt-get update failed"
}
