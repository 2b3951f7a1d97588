# shellcheck shell=bash disable=SC2034
# testbed.sh: the two-node cluster that slurm/testbed makes on one machine. Nodes claim more cores than there are, so ranks are few and
# have one thread each, and what waits gives its core up.

mb_site_sbatch=()
mb_site_light=(--cpus-per-task=1)
mb_site_heavy=(--nodes=2 --ntasks-per-node=2 --cpus-per-task=1)
mb_site_launcher=(srun --mpi=pmix)
mb_site_setup() {
    export OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive
}
mb_site_scratch=/tmp/scratch # private to each node
mb_site_cores_per_node=4
mb_site_max_minutes=600
