/* moe-cluster: k-means of embeddings, and the records of every cluster as a file of their own. */
#include <math.h>
#include <stdlib.h>

#include "stage/cluster_files.h"
#include "stage/cluster_inputs.h"
#include "stage/program.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_cluster_program *own;
    const mb_option *table = mb_cluster_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "data", table, n, own));
    table = mb_kmeans_option_table(&n);
    MB_TRY(mb_program_add_table(program, "k-means", table, n, &own->kmeans));
done:
    return status;
}

static mb_status begin(mb_program *program, const mb_cluster_inputs *inputs, bool *out_is_done)
{
    const mb_cluster_program *own = program->own;
    mb_status status = MB_OK;
    const char **names = NULL, **paths = NULL;
    MB_NEW_ARRAY(names, inputs->count + 2);
    MB_NEW_ARRAY(paths, inputs->count + 2);
    names[0] = "embeddings";
    paths[0] = inputs->embeddings;
    names[1] = "centres";
    paths[1] = own->centres_path;
    for (int64_t i = 0; i < inputs->count; ++i) {
        names[i + 2] = inputs->names[i];
        paths[i + 2] = own->records ? inputs->paths[i] : NULL;
    }
    MB_TRY(mb_program_begin_run_list(program, names, paths, inputs->count + 2, out_is_done));
done:
    mb_free(names);
    mb_free(paths);
    return status;
}

/* Everything between the embeddings and the files. Collective. */
static mb_status compute(mb_program *program, const char *path, mb_cluster_job *job)
{
    mb_cluster_program *own = program->own;
    mb_status status = MB_OK;
    mb_kmeans *kmeans = NULL;
    float *start = NULL;
    int64_t *numbers = NULL, k = 0;
    MB_TRY(mb_comm_agree(program->comm, mb_cluster_inputs_rows(program, job->embeddings, &job->rows)));
    if (own->centres_path != NULL)
        status = mb_cluster_inputs_centres(own->centres_path, job->rows.width, &start, &k);
    if (status == MB_OK) status = mb_cluster_inputs_numbers(own->k, &numbers, &job->count);
    if (status == MB_OK && start != NULL && (job->count != 1 || numbers[0] != k))
        status = mb_fail(MB_EUSAGE, "%s has %lld centres: give cluster.k=%lld", own->centres_path,
                         (long long)k, (long long)k);
    if (status == MB_OK && numbers[job->count - 1] > job->rows.total)
        status = mb_fail(MB_ERANGE, "%s: %lld clusters of %lld records: at most one for each record", path,
                         (long long)numbers[job->count - 1], (long long)job->rows.total);
    if (status == MB_OK && (job->point = mb_calloc((size_t)job->count, sizeof *job->point)) == NULL)
        status = MB_ENOMEM;
    MB_TRY(mb_comm_agree(program->comm, status));
    status = mb_kmeans_create(program->comm, &job->rows, &own->kmeans, &kmeans);
    if (status != MB_OK) mb_status_prefix("%s: ", path);
    MB_TRY(status);
    if (own->pca) {
        MB_TRY(mb_pca_run(program->comm, &job->rows, own->kmeans.threads, own->kmeans.opt_isa, &job->pca));
        MB_TRY(mb_cluster_point_gather(program->comm, job->pca.plane,
                                       (size_t)(job->pca.count * MB_PCA_AXES) * sizeof(float),
                                       (void **)&job->plane));
    }
    for (int64_t i = 0; i < job->count; ++i)
        MB_TRY(mb_cluster_point_run(program, kmeans, &job->rows, numbers[i], start, &job->point[i]));
    MB_TRY(mb_cluster_files_choose(own->choose, job->point, job->count, &job->chosen));
done:
    mb_kmeans_destroy(&kmeans);
    mb_free(start);
    mb_free(numbers);
    return status;
}

static mb_status write(mb_program *program, const mb_cluster_inputs *inputs, const mb_cluster_job *job)
{
    const mb_cluster_program *own = program->own;
    mb_status status = MB_OK;
    mb_cluster_records records = {0};
    const char **paths = NULL;
    MB_TRY(mb_cluster_records_read(job->embeddings, &records));
    MB_NEW_ARRAY(paths, records.source_count);
    if (own->records) MB_TRY(mb_cluster_inputs_match(program, inputs, &records, paths));
    MB_TRY(mb_cluster_files_write(program, job, mb_runfolder_input_hash(program->run, "embeddings"), &records,
                                  paths));
done:
    mb_cluster_records_reset(&records);
    mb_free(paths);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_cluster_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_embeddings *embeddings = NULL;
    mb_cluster_inputs inputs = {0};
    mb_cluster_job job = {.chosen = -1};
    if (own->embeddings_path == NULL)
        MB_RAISE(MB_EUSAGE, "embeddings.path is missing: the embeddings.h5 of moe-embed");
    if (own->kmeans.max_iterations == 0 && own->centres_path == NULL)
        MB_RAISE(MB_EUSAGE,
                 "cluster.max_iterations = 0 leaves centres as they are: give them by centres.path");
    own->kmeans.threads = (int)program->options.threads;
    own->kmeans.opt_isa = getenv("MB_ISA");
    MB_TRY(mb_comm_agree(program->comm, mb_cluster_inputs_read(own, &inputs)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(program, &inputs, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_embeddings_open(inputs.embeddings, &embeddings)));
    job.embeddings = embeddings;
    MB_TRY(compute(program, inputs.embeddings, &job));
    if (mb_program_is_root(program)) status = write(program, &inputs, &job);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_result_int(program, "records", job.rows.total));
    if (job.chosen >= 0) {
        MB_TRY(mb_program_result_int(program, "k", job.point[job.chosen].kmeans.k));
        MB_TRY(mb_program_result_real(program, "inertia", job.point[job.chosen].kmeans.inertia));
        if (isfinite(job.point[job.chosen].summary.mean))
            MB_TRY(mb_program_result_real(program, "silhouette", job.point[job.chosen].summary.mean));
    }
    MB_TRY(mb_program_finish_run(program, NULL));
done:
    for (int64_t i = 0; job.point != NULL && i < job.count; ++i) mb_cluster_point_reset(&job.point[i]);
    mb_free(job.point);
    mb_free(job.plane);
    mb_pca_reset(&job.pca);
    mb_free(job.rows.data);
    mb_embeddings_close(&embeddings);
    mb_cluster_inputs_reset(&inputs);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-cluster",
        .purpose =
            "k-means of embeddings: labels, centres, silhouette, and the records of every cluster as JSONL",
        .example = "  mpirun -np 4 moe-cluster embeddings.path=checkpoints/moe2/embed cluster.k=8 "
                   "output.dir=checkpoints/moe2/cluster\n"
                   "  moe-cluster embeddings.path=embed/embeddings.h5 cluster.k=2,4,8,16,32 "
                   "cluster.choose=inertia_elbow output.dir=sweep",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
