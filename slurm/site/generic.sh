# shellcheck shell=bash disable=SC2034
# generic.sh: the site file for a cluster nobody described yet, and the description of every name that a site file may set. Copy it to
# slurm/site/<cluster>.sh, keep what differs, and choose it with MB_SITE=<cluster> (or slurm.site in the study file). Site files are read
# where jobs are submitted (the arrays) and inside every job (the rest). What is not set has the value that stands here.

# ---- What sbatch is asked for, when jobs/*.sh submit. slurm.* keys of a study come after these and win. ----

# Of every job: account, partition, quality of service, constraints, mail.
#   mb_site_sbatch=(--account=project_123 --partition=standard)
mb_site_sbatch=()

# Of jobs of one process (convert, select, tokenizer, reports), beside --nodes=1 --ntasks=1.
mb_site_light=(--cpus-per-task=2)

# Of jobs of many ranks (train, score, eval, shard, embed, infer). On CPU nodes a rank per NUMA domain or so, with its cores as threads;
# on GPU nodes a rank per GPU (slurm/site/gpu.sh). Results do not depend on the number of ranks, only on the threads per rank.
mb_site_heavy=(--ntasks-per-node=2 --cpus-per-task=2)

# ---- Inside a job ----

# How ranks are started. Open MPI under Slurm: srun with its PMIx plugin (`srun --mpi=list` shows what there is); where that is missing,
# mb_site_launcher=(mpirun) with an Open MPI that was built with Slurm support.
mb_site_launcher=(srun --mpi=pmix)

# What must be loaded before the programs can run: the modules they were built with.
mb_site_setup() { :; }

# A folder on the node's own disk or in its memory (then it counts as memory of the job), for copies of models: read once from the shared
# file system however many ranks, array elements and later jobs read them. May use $USER, $TMPDIR, $SLURM_JOB_ID. Empty: no copies.
mb_site_scratch=''

# Folders smaller than this many MiB are not worth a copy.
mb_site_stage_min_mib=8

# requeue: a stopped job puts itself back into the queue under its own id (scontrol requeue). resubmit: for sites that forbid that; it calls
# sbatch again (allowed on compute nodes?) and the jobs that wait for it then wait for the new one.
mb_site_requeue=requeue

# How often a job may start again before somebody should look.
mb_site_max_requeues=20

# ---- What a forecast needs to know. 0: not known. ----

mb_site_node_memory_gib=0
mb_site_cores_per_node=0
mb_site_gpus_per_node=0
mb_site_gpu_memory_gib=0 # of one

# Longest job that the partition allows, in minutes.
mb_site_max_minutes=0

# Elements of an array that may run at the same time. Empty: as many as Slurm starts.
mb_site_throttle=''

# Name of the measurements of this kind of node (moe-inspect machine) that time forecasts use. Empty: the default.
mb_site_machine=''
