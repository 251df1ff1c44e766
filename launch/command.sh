# shellcheck shell=bash
# Sourced by the other scripts, with their arguments: [--dry-run] train|train-tokenizer|sweep --config ... --workdir ...
# Sets COMMAND (what follows --dry-run), WORKDIR (its --workdir) and DRY_RUN (1 or empty).

fail() {  # MESSAGE: one line, exit code 2
    echo "${0##*/}: $1" >&2
    exit 2
}

need() {  # NAMES of variables that must have a value
    local name missing=()
    for name; do [[ -n ${!name:-} ]] || missing+=("$name"); done
    ((${#missing[@]} == 0)) || fail "set ${missing[*]}; $0 --help says what ${missing[0]} is"
}

whole_number() {  # NAMES of variables that must hold a number above 0
    local name
    for name; do [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name is '${!name}'; it must be a whole number above 0"; done
}

one_or_empty() {  # NAME of a variable that is 1 or empty
    [[ ${!1} == 1 || -z ${!1} ]] || fail "$1 is '${!1}'; it must be 1 or empty"
}

quoted() {  # WORDS as one line that a shell reads as the same words
    local word line=()
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then line+=("$word"); else line+=("${word@Q}"); fi
    done
    echo "${line[*]}"
}

run() {  # WORDS: runs them, or prints them in a dry run
    if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,/^[^#]/{s/^#\( \|$\)//p}' "$0"
    exit 0
fi
DRY_RUN=
if [[ ${1:-} == --dry-run ]]; then
    DRY_RUN=1
    shift
fi
# shellcheck disable=SC2034  # for the script that sources this
COMMAND=("$@")
case ${1:-} in
    train | train-tokenizer | sweep) ;;
    *) fail "'${1:-}' is not train, train-tokenizer or sweep; see $0 --help" ;;
esac
CONFIG='' WORKDIR=''
while (($#)); do
    case $1 in
        --config) CONFIG=${2:-} ;;
        --config=*) CONFIG=${1#*=} ;;
        --workdir) WORKDIR=${2:-} ;;
        --workdir=*) WORKDIR=${1#*=} ;;
        --coordinator* | --processes* | --process* | --platform*) fail "$1 is set by this script: leave it out" ;;
    esac
    shift
done
[[ $CONFIG ]] || fail "the command has no --config; see $0 --help"
[[ $WORKDIR ]] || fail "the command has no --workdir; see $0 --help"
