# shellcheck shell=bash disable=SC2034
# cpu.sh: an example for a partition of CPU nodes with 2 x 64 cores, 256 GiB, a local disk and no GPU. Copy it and put in your names.

mb_site_sbatch=(--account=project_465000123 --partition=standard --exclude=nid001004)

# A shared partition for small jobs, so that a conversion does not take a whole node.
mb_site_light=(--partition=small --cpus-per-task=8 --mem=64G)

# One rank per NUMA domain: 8 per node, 16 threads each, memory from the own domain.
mb_site_heavy=(--exclusive --ntasks-per-node=8 --cpus-per-task=16 --hint=nomultithread --distribution=block:block)

mb_site_launcher=(srun --mpi=pmix --cpu-bind=cores)

mb_site_setup() {
    module --force purge
    module load gcc/13.2 openmpi/4.1.6-pmix hdf5/1.14.3 onednn/3.5
    export OMP_PLACES=cores OMP_PROC_BIND=close
    export HDF5_USE_FILE_LOCKING=FALSE # Lustre mounted without flock
}

mb_site_scratch=/local/scratch/$USER
mb_site_requeue=requeue
mb_site_node_memory_gib=240 # what jobs can have of 256
mb_site_cores_per_node=128
mb_site_max_minutes=2880
mb_site_throttle=32
mb_site_machine=epyc7763
