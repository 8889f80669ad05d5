#!/bin/sh
# Slurm's Prolog on every node: the models lie on a file system that all nodes share.
#
# The first node that needs them fetches; the others wait for the lock that klein-setup holds in the models folder, and
# find everything there.  A node that dies lets go of it, and the next one continues with the bytes on disk.
#
# Slurm drains a node whose prolog fails.  So only what is wrong with this node is a failure: the folder is not mounted.
# A full disk or a dead network is wrong on all of them; it is logged, and the job's own first line finds out
# (scripts/slurm/job.sh).
set -u
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin} # Slurm gives a prolog none

KLEIN_SETUP=${KLEIN_SETUP:-/opt/klein-setup/bin/klein-setup}
COMFYUI=${KLEIN_SETUP_COMFYUI:-/shared/ComfyUI}
SET=${KLEIN_SETUP_SET:-fp8}
LIMIT_S=${KLEIN_SETUP_LIMIT_S:-600} # less than PrologEpilogTimeout and BatchStartTimeout
OWNER=${KLEIN_SETUP_OWNER:-}        # who owns the files, where the server takes root's rights away

say() {
    logger -t klein-setup-prolog -- "$*" 2>/dev/null || echo "klein-setup-prolog: $*" >&2
}

as_owner() {
    if [ -n "$OWNER" ] && [ "$(id -u)" -eq 0 ]; then
        runuser -u "$OWNER" -- "$@"
    else
        "$@"
    fi
}

if [ ! -d "$COMFYUI" ]; then
    say "$COMFYUI is not there. Mount it on $(uname -n), then resume the node."
    exit 1
fi

# A quarter of a second where nothing is to do, without a lock.
if as_owner "$KLEIN_SETUP" verify --quick --set "$SET" --comfyui "$COMFYUI" >/dev/null 2>&1; then
    exit 0
fi

# Locks that only this node sees would let all of them fetch at once.
options=$(findmnt -n -o OPTIONS -T "$COMFYUI" 2>/dev/null)
case ",$options," in
*,nolock,* | *,localflock,* | *,localflocks,* | *,local_lock=all,* | *,local_lock=flock,*)
    say "$COMFYUI is mounted without locks between nodes ($options). Nothing was fetched; fill it from one node."
    exit 0
    ;;
esac

as_owner timeout "$LIMIT_S" "$KLEIN_SETUP" install --only files --set "$SET" --comfyui "$COMFYUI" --no-input --quiet
status=$?
case $status in
0) ;;
124 | 143) say "not complete after $LIMIT_S s; the next job continues." ;;
*) say "klein-setup install ended with exit status $status; $KLEIN_SETUP verify --set $SET --comfyui $COMFYUI says why." ;;
esac
exit 0
