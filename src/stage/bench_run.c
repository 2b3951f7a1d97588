/* bench_run.c: see bench_run.h.
 *
 * 1. experts   2. prompts from texts   3. one expert   4. all experts   5. files   6. measure   7. join
 */
#include "stage/bench_run.h"

#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/bench_rounds.h"
#include "stage/bench_transfer.h"
#include "stage/named_paths.h"
#include "text/records.h"

typedef struct work {
    mb_program *program;
    mb_bench_program *own;
    mb_named_paths experts; /* further member: adapter */
    mb_bench_result result;
    mb_energy *energy;
    mb_ids text;
} work;

static void close_work(work *w)
{
    mb_named_paths_reset(&w->experts);
    mb_bench_result_reset(&w->result);
    mb_energy_end(&w->energy);
    mb_ids_destroy(&w->text);
}

/* ---- 1. experts ---- */

static mb_status find_experts(work *w)
{
    static const char *const further[] = {"adapter"};
    mb_status status = MB_OK;
    const mb_bench_program *own = w->own;
    char *one = NULL;
    if (own->experts != NULL) {
        MB_TRY(mb_named_paths_read("bench.experts", own->experts, further, 1, &w->experts));
    } else {
        if (own->model.path == NULL)
            MB_RAISE(MB_EUSAGE,
                     "nothing to measure: give bench.experts = name=folder,name=folder, or model.path");
        one = mb_str_format("%s%s%s", own->name != NULL ? own->name : "", own->name != NULL ? "=" : "",
                            own->model.path);
        if (one == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        MB_TRY(mb_named_paths_read("model.path", one, further, 1, &w->experts));
        if (own->model.adapter != NULL &&
            (w->experts.item[0].more[0] = mb_strdup(own->model.adapter)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a path");
    }
    if (w->experts.count == 0) MB_RAISE(MB_EUSAGE, "bench.experts is empty; give name=folder,name=folder");
done:
    mb_free(one);
    return status;
}

static mb_status open_expert(work *w, int64_t e, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_model_options options = w->own->model;
    options.path = w->experts.item[e].path;
    options.adapter = w->experts.item[e].more[0];
    options.opt_comm = NULL; /* one rank alone has it */
    MB_TRY(mb_model_options_open(&options, w->program->ops, NULL, NULL, 0, out_lm));
done:
    return status;
}

/* ---- 2. prompts from texts ---- */

static const char *text_of(const mb_bench_program *own, const json_t *record)
{
    static const char *const names[] = {"text", "prompt", "question", "instruction"};
    if (own->field != NULL) return json_string_value(json_object_get(record, own->field));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = json_string_value(json_object_get(record, names[i]));
        if (text != NULL) return text;
    }
    return NULL;
}

enum { TEXT_TOKENS = 1 << 16 }; /* as many of the file's as prompts are cut from */

static mb_status read_text(work *w, const char *folder)
{
    mb_status status = MB_OK;
    const mb_bench_program *own = w->own;
    mb_records *records = NULL;
    mb_tokenizer *tokenizer = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_record record;
    mb_ids_reset(&w->text);
    if (own->dataset == NULL) goto done;
    MB_TRY(mb_tokenizer_open(own->tokenizer != NULL ? own->tokenizer : folder, &tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &scratch));
    MB_TRY(mb_records_open(own->dataset, 0, &records));
    while (w->text.count < TEXT_TOKENS) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        const char *text = record.json != NULL ? text_of(own, record.json) : NULL;
        if (text != NULL)
            MB_TRY(mb_tokenizer_encode(tokenizer, scratch, text, strlen(text), false, &w->text));
    }
    if (w->text.count == 0)
        MB_RAISE(MB_EDATA, "%s: no record has a text%s%s; bench.field names the field", own->dataset,
                 own->field != NULL ? " called " : "", own->field != NULL ? own->field : "");
done:
    mb_records_close(&records);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&tokenizer);
    return status;
}

/* ---- 3. one expert ---- */

static mb_bench_rounds how_of(const work *w)
{
    const mb_bench_program *own = w->own;
    const bool has_gpu = mb_ops_is_device(w->program->ops);
    return (mb_bench_rounds){.opt_energy = w->energy,
                             .power = {own->watts_per_core, own->watts_idle, has_gpu ? own->watts_gpu : 0},
                             .opt_text = w->text.count > 0 ? &w->text : NULL,
                             .seed = (uint64_t)own->seed,
                             .energy_seconds = own->energy_seconds,
                             .warmup = own->warmup};
}

static mb_status describe(const work *w, int64_t e, const char *hash, mb_bench_expert *expert)
{
    mb_status status = MB_OK;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    expert->name = mb_strdup(w->experts.item[e].name);
    expert->model = mb_strdup(w->experts.item[e].path);
    expert->hash = mb_strdup(hash);
    expert->machine = mb_str_format("%s, %s, %d threads", host, mb_ops_name(w->program->ops),
                                    mb_ops_threads(w->program->ops));
    if (expert->name == NULL || expert->model == NULL || expert->hash == NULL || expert->machine == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for a name");
done:
    return status;
}

static mb_status measure(work *w, int64_t e)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    mb_bench_expert *expert = w->result.expert + e;
    bool is_counted = false;
    double seconds, joules;
    MB_TRY(open_expert(w, e, &lm));
    MB_TRY(read_text(w, mb_lm_base(lm)));
    MB_TRY(describe(w, e, mb_lm_hash(lm), expert));
    const mb_bench_rounds how = how_of(w);
    MB_TRY(mb_bench_rounds_run(lm, &how, &w->result, expert, &is_counted));
    if (w->energy != NULL && !is_counted)
        MB_RAISE(MB_EDEVICE,
                 "%s: the counter of energy was lost (%s); run again, or bench.energy = power_model",
                 expert->name, mb_energy_reason(w->energy));
    MB_TRY(mb_bench_result_reference(&w->result, e, &seconds, &joules));
    mb_info("%s: %.4g s, %.4g J for %lld tokens in, %lld out", expert->name, seconds, joules,
            (long long)w->result.grid.reference_prompt, (long long)w->result.grid.reference_output);
done:
    mb_lm_destroy(&lm);
    return status;
}

/* ---- 4. all experts ---- */

/* What the rank that measured an expert found, to all. */
static mb_status share(const work *w, int64_t e, int owner)
{
    mb_status status = MB_OK;
    mb_comm *comm = w->program->comm;
    mb_bench_expert *x = w->result.expert + e;
    const mb_bench_grid *g = &w->result.grid;
    const size_t cells = (size_t)(g->prompts * g->outputs), rounds = cells * (size_t)w->result.repeats;
    double *const arrays[] = {x->seconds, x->first_seconds, x->core_seconds, x->joules};
    char **const texts[] = {&x->name, &x->model, &x->hash, &x->machine};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        MB_TRY(mb_comm_bcast(comm, arrays[i], rounds * sizeof(double), owner));
    MB_TRY(mb_comm_bcast(comm, x->block_joules, cells * sizeof(double), owner));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int64_t n = *texts[i] != NULL ? (int64_t)strlen(*texts[i]) + 1 : 0;
        MB_TRY(mb_comm_bcast(comm, &n, sizeof n, owner));
        if (*texts[i] == NULL) MB_NEW_ARRAY(*texts[i], n);
        MB_TRY(mb_comm_bcast(comm, *texts[i], (size_t)n, owner));
    }
done:
    return status;
}

/* A request: ids and a head; an answer: what store/outputs keeps of it. */
static mb_status find_transfer(const work *w, int64_t e, int owner)
{
    mb_status status = MB_OK;
    const mb_bench_program *own = w->own;
    const size_t there = 64 + 4 * (size_t)w->result.grid.reference_prompt,
                 back = 64 + 4 * (size_t)w->result.grid.reference_output;
    double *transfer = &w->result.expert[e].transfer;
    if (own->link_latency > 0 || own->link_rate > 0)
        *transfer =
            2 * own->link_latency + (own->link_rate > 0 ? (double)(there + back) / own->link_rate : 0);
    else
        MB_TRY(mb_bench_transfer_run(w->program->comm, owner, there, back, transfer));
done:
    return status;
}

static mb_status measure_all(work *w)
{
    mb_status status = MB_OK;
    mb_comm *comm = w->program->comm;
    const int rank = mb_comm_rank(comm), size = mb_comm_size(comm);
    for (int64_t e = 0; e < w->experts.count; e++) {
        const int owner = (int)(e % size);
        MB_TRY(mb_comm_agree(comm, rank == owner ? measure(w, e) : MB_OK));
        MB_TRY(share(w, e, owner));
        MB_TRY(find_transfer(w, e, owner));
    }
    MB_TRY(mb_bench_transfer_fuse(w->experts.count, &w->result.aggregation));
done:
    return status;
}

/* The fewest positions of the experts say which lengths fit. */
static mb_status find_grid(work *w)
{
    mb_status status = MB_OK;
    int64_t fewest = INT64_MAX;
    const char *whose = "";
    for (int64_t e = 0; e < w->experts.count; e++) {
        mb_arch arch = {0};
        status = mb_arch_read(w->experts.item[e].path, &arch);
        const int64_t own = status == MB_OK ? mb_rotary_limit(&arch.rotary, arch.max_positions) : 0;
        mb_arch_reset(&arch);
        MB_TRY(status);
        if (own < fewest) fewest = own, whose = w->experts.item[e].name;
    }
    MB_TRY(mb_bench_grid_get(w->own, fewest, whose, &w->result.grid));
    w->result.repeats = w->own->repeats, w->result.warmup = w->own->warmup;
    MB_TRY(mb_bench_result_alloc(&w->result, w->experts.count));
done:
    return status;
}

/* Counters where every rank has one; else the stated power. */
static mb_status find_energy(work *w)
{
    mb_status status = MB_OK;
    const mb_bench_program *own = w->own;
    mb_str text = MB_STR_EMPTY;
    const char *source = "power_model";
    int64_t has = 0;
    if (!mb_str_equal(own->energy, "power_model")) {
        w->energy = mb_energy_begin(mb_ops_bus_id(w->program->ops));
        has = strcmp(mb_energy_source(w->energy), "none") != 0;
    }
    MB_TRY(mb_comm_allreduce_i64(w->program->comm, &has, 1, MB_COMM_MIN));
    if (!has && mb_str_equal(own->energy, "counter"))
        MB_RAISE(MB_EDEVICE,
                 "bench.energy = counter: no joules can be counted here (%s); power_model states them",
                 mb_energy_reason(w->energy));
    if (!has) {
        const mb_bench_rounds how = how_of(w);
        mb_energy_end(&w->energy);
        MB_TRY(mb_power_model_text(&how.power, &text));
    } else {
        source = mb_energy_source(w->energy);
        MB_TRY(mb_str_add_format(
            &text, "counted by %s, %s", source,
            mb_ops_is_device(w->program->ops)
                ? "all that the GPU's board took"
                : "all that the node's processors and their memory took, whoever used them"));
    }
    w->result.is_counted = has;
    w->result.source = mb_strdup(source);
    w->result.source_text = mb_strdup(mb_str_text(&text));
    w->result.transfer_text =
        mb_strdup(own->link_latency > 0 || own->link_rate > 0 ? "a stated link"
                  : mb_comm_size(w->program->comm) > 1 ? "measured between the first rank and the expert's"
                                                       : "none: one rank");
    if (w->result.source == NULL || w->result.source_text == NULL || w->result.transfer_text == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for a text");
    if (mb_program_is_root(w->program)) mb_info("energy: %s", w->result.source_text);
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 5. files ---- */

static mb_status write_files(const work *w)
{
    mb_status status = MB_OK;
    char *h5 = mb_program_path(w->program, "bench.h5"),
         *latency = mb_program_path(w->program, "latency.json"),
         *energy = mb_program_path(w->program, "energy.json");
    if (h5 == NULL || latency == NULL || energy == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_bench_result_write(&w->result, h5));
    MB_TRY(mb_bench_result_latency(&w->result, latency));
    MB_TRY(mb_bench_result_energy(&w->result, energy));
    MB_TRY(mb_program_result_int(w->program, "experts", w->result.experts));
done:
    mb_free(h5);
    mb_free(latency);
    mb_free(energy);
    return status;
}

static mb_status finish(const work *w)
{
    mb_status status = MB_OK;
    MB_TRY(mb_comm_agree(w->program->comm, mb_program_is_root(w->program) ? write_files(w) : MB_OK));
    MB_TRY(mb_program_finish_run(w->program, "bench.h5", "latency.json", "energy.json", NULL));
done:
    return status;
}

/* ---- 6. measure ---- */

/* Folders of a list as inputs of the record; adapters too. */
static mb_status begin(work *w, const char *opt_data, bool *out_is_done)
{
    mb_status status = MB_OK;
    const int64_t n = w->experts.count;
    const char **names = NULL, **paths = NULL;
    char **labels = NULL;
    int64_t count = 0;
    MB_NEW_ARRAY(names, 2 * n + 1);
    MB_NEW_ARRAY(paths, 2 * n + 1);
    MB_NEW_ARRAY(labels, 2 * n);
    for (int64_t i = 0; i < 2 * n; i++) {
        const mb_named_path *item = &w->experts.item[i / 2];
        const char *path = i % 2 == 0 ? item->path : item->more[0];
        if (path == NULL) continue;
        if ((labels[i] = mb_str_format(i % 2 == 0 ? "%s" : "%s_adapter", item->name)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a name");
        names[count] = labels[i], paths[count++] = path;
    }
    if (opt_data != NULL) names[count] = "dataset", paths[count++] = opt_data;
    MB_TRY(mb_program_begin_run_list(w->program, names, paths, count, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < 2 * n; i++) mb_free(labels[i]);
    mb_free(labels);
    mb_free(names);
    mb_free(paths);
    return status;
}

mb_status mb_bench_run(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find_experts(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, w.own->dataset, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, find_grid(&w)));
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(find_energy(&w));
    MB_TRY(measure_all(&w));
    MB_TRY(finish(&w));
done:
    close_work(&w);
    return status;
}

/* ---- 7. join ---- */

static mb_status add_all(work *w)
{
    mb_status status = MB_OK;
    mb_bench_result more = {0};
    for (int64_t i = 0; i < w->experts.count; i++) {
        MB_TRY(mb_bench_result_read(w->experts.item[i].path, &more));
        MB_TRY(mb_bench_result_add(&w->result, w->experts.item[i].path, &more));
    }
    MB_TRY(mb_bench_transfer_fuse(w->result.experts, &w->result.aggregation));
done:
    mb_bench_result_reset(&more);
    return status;
}

/* Folders become the files in them. */
static mb_status find_results(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(mb_named_paths_read("bench.inputs", w->own->inputs, NULL, 0, &w->experts));
    if (w->experts.count == 0)
        MB_RAISE(MB_EUSAGE,
                 "bench.inputs is missing: folders of moe-bench to join, as a=runs/bench-a,b=runs/bench-b");
    for (int64_t i = 0; i < w->experts.count; i++) {
        char **path = &w->experts.item[i].path, *file = NULL;
        if (mb_files_is_folder(*path)) {
            if ((file = mb_str_format("%s/bench.h5", *path)) == NULL)
                MB_RAISE(MB_ENOMEM, "no memory for a path");
            mb_free(*path);
            *path = file;
        }
        if (!mb_files_is_file(*path))
            MB_RAISE(MB_ENOTFOUND,
                     "%s: there is no such file (bench.inputs, entry '%s'); run moe-bench there", *path,
                     w->experts.item[i].name);
    }
done:
    return status;
}

mb_status mb_bench_join(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, program->is_dry_run ? MB_OK : find_results(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, NULL, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, add_all(&w)));
    MB_TRY(finish(&w));
done:
    close_work(&w);
    return status;
}
