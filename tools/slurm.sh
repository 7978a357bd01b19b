#!/bin/bash
#SBATCH --job-name=spinalnet --requeue --open-mode=append --output=results/slurm/%A-%a.txt
#SBATCH --ntasks=1 --signal=B:USR1@120
# Runs command lines as tasks of a Slurm array:  COMMANDS | tools/slurm.sh [FLAGS OF SBATCH]
# The lines come from `make slurm`, a run each. This script keeps them in results/slurm/*.tasks (a
# thousand each, as an array may be no longer) and submits itself for each such file; as a task it
# runs one line. Near its time limit a task queues itself again, at most a hundred times, and its
# run goes on after its last saved epoch. SIGTERM is handed on to the run.
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    command -v sbatch > /dev/null || { echo "error: there is no sbatch here: call this where Slurm is" >&2; exit 2; }
    [ -z "$(squeue --me --noheader --name=spinalnet)" ] || {
        echo "error: jobs of an earlier call are in the queue: wait, or scancel --me --name=spinalnet" >&2; exit 2; }
    stem=results/slurm/$(date -u +%Y%m%dT%H%M%SZ)
    mkdir -p results/slurm && split -d -a 3 -l 1000 - "$stem-" || exit 2
    [ -e "$stem-000" ] || { echo "nothing to submit"; exit 0; }
    for part in "$stem"-???; do
        mv "$part" "$part.tasks"
        sbatch --array="0-$(($(wc -l < "$part.tasks") - 1))${AT_ONCE:+%$AT_ONCE}" "$@" tools/slurm.sh "$part.tasks" || exit 1
    done
    exit 0
fi
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1") && [ -n "$line" ] || {
    echo "error: $1 has no line for task $SLURM_ARRAY_TASK_ID: submit again with make slurm" >&2; exit 2; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
eval "exec $line" &
trap '[ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' USR1
trap 'kill -TERM $!' TERM
wait $!; status=$?
while kill -0 $! 2> /dev/null; do  # a signal ended the waiting, not the run
    wait $!; status=$?
done
exit $status
