#!/bin/bash
# A job array that segments a manifest: each task does one shard. docs/how-to/cohorts.md says how to start it.
#
# MANIFEST, PLACE, MODEL  as voxtile batch takes them, on file systems that every node sees
# VOXTILE_URL             HOST:PORT of a server that runs already; or instead of it
# REPOSITORY              a model repository: each task then runs a server of its own on its node
# OPTIONS                 if you like: further options of voxtile batch, such as --retry-failed
#
#SBATCH --job-name=voxtile
#SBATCH --array=0-3
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

for name in MANIFEST PLACE MODEL; do
    if [ -z "${!name:-}" ]; then
        echo "cohort.sh: expected $name in the environment, found nothing; say it with sbatch --export" >&2
        exit 2
    fi
done

read -ra options <<<"${OPTIONS:-}"
command=(voxtile batch --manifest "$MANIFEST" --out "$PLACE" --model "$MODEL" "${options[@]}")
if [ -n "${REPOSITORY:-}" ]; then
    threads=${SLURM_CPUS_PER_TASK:-1}
    command=(python3 -m voxtile_server.run_with --repository "$REPOSITORY" --threads "$threads" -- "${command[@]}")
elif [ -z "${VOXTILE_URL:-}" ]; then
    echo "cohort.sh: expected VOXTILE_URL or REPOSITORY in the environment, found neither; say one with sbatch --export" >&2
    exit 2
fi

# Slurm signals this shell alone, so the shell passes it on, and waits until what is done is recorded.
limit=
"${command[@]}" &
child=$!
trap 'limit=reached; kill -USR1 "$child" 2>/dev/null' USR1
trap 'kill -TERM "$child" 2>/dev/null' TERM
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a trap has ended the waiting
    wait "$child"
    code=$?
done

# 75: stopped, go on. After its time limit the task goes on by itself.
if [ "$code" -eq 75 ] && [ -n "$limit" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
