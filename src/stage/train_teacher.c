/* train_teacher.c: the teacher of a distillation that is asked while training.
 *
 * 1. which   2. checks   3. opening
 */
#include "stage/train_teacher.h"

#include "base/log.h"
#include "model/fuse_vocab.h"

/* ---- 1. which ---- */

static bool is_distil(const mb_train_program *own)
{
    return mb_str_equal(own->objective.objective, "distil") ||
           mb_str_equal(own->objective.objective, "distill");
}

bool mb_train_teacher_is_online(const mb_train_program *own)
{
    return is_distil(own) && own->objective.teacher_store == NULL &&
           (own->teacher != NULL || mb_fuse_options_is_given(&own->fuse));
}

/* The keys of a fused teacher: beside fuse.router those of members only say where the student starts. */
static mb_fuse_options_stage fused_teacher(const mb_train_program *own)
{
    mb_fuse_options_stage fuse = own->fuse;
    if (fuse.router == NULL || own->student_init == NULL) return fuse;
    fuse.foundation = fuse.sft = fuse.foundation_adapter = fuse.sft_adapter = NULL;
    return fuse;
}

static const char *type_of(const mb_lm *teacher)
{
    if (!mb_lm_is_fused(teacher)) return "model";
    return mb_fuse_get_kind(teacher) == MB_FUSE_ENSEMBLE ? "ensemble" : "btm";
}

/* ---- 2. checks ---- */

static mb_status check_online(const mb_train_program *own)
{
    mb_status status = MB_OK;
    const bool is_fused = mb_fuse_options_is_given(&own->fuse);
    const mb_fuse_options_stage fuse = fused_teacher(own);
    mb_model_options none = {0};
    if (own->teacher == NULL && own->teacher_adapter != NULL)
        MB_RAISE(MB_EUSAGE, "teacher.adapter goes on top of teacher.path; give that too");
    if (own->teacher != NULL && is_fused && own->student_init == NULL)
        MB_RAISE(MB_EUSAGE, "teacher.path and %s both name the teacher; leave one of them out",
                 own->fuse.router != NULL ? "fuse.router" : "fuse.foundation, fuse.sft");
    if (mb_str_equal(own->fuse.members_on, "ranks"))
        MB_RAISE(MB_EUSAGE, "fuse.members_on = ranks: every rank asks the teacher about records of its own; "
                            "let moe-teacher ask it before (teacher.store), or take fuse.members_on=all");
    if (own->teacher == NULL && is_fused) MB_TRY(mb_fuse_options_check(&fuse, &none));
done:
    return status;
}

mb_status mb_train_teacher_check(const mb_train_program *own)
{
    mb_status status = MB_OK;
    const bool has_store =
        own->objective.teacher_store != NULL || own->objective.teacher_validation_store != NULL;
    if (!is_distil(own)) {
        if (has_store || own->teacher != NULL)
            MB_RAISE(MB_EUSAGE, "teacher.* is for training.objective=distil, and it is %s",
                     own->objective.objective);
        goto done;
    }
    if (own->objective.teacher_store != NULL && own->teacher != NULL)
        MB_RAISE(MB_EUSAGE, "teacher.store and teacher.path both name the teacher; leave one of them out");
    if (own->objective.teacher_store != NULL && own->student_init == NULL &&
        mb_fuse_options_is_given(&own->fuse))
        MB_RAISE(MB_EUSAGE, "teacher.store and %s both name the teacher; leave one of them out",
                 own->fuse.router != NULL ? "fuse.router" : "fuse.foundation, fuse.sft");
    if (own->objective.teacher_validation_store != NULL && own->objective.teacher_store == NULL)
        MB_RAISE(MB_EUSAGE, "teacher.validation_store goes with teacher.store; a teacher that is asked while "
                            "training is asked in validations too");
    if (mb_train_teacher_is_online(own)) MB_TRY(check_online(own));
done:
    return status;
}

/* ---- 3. opening ---- */

/* Token by token, where both have a tokenizer. */
static mb_status check_vocabulary(const mb_lm *student, const mb_lm *teacher)
{
    mb_status status = MB_OK;
    mb_fuse_vocab *vocab = NULL;
    const mb_fuse_vocab_source sources[] = {{"student", mb_lm_base(student), mb_lm_arch(student)->vocab},
                                            {"teacher", mb_lm_base(teacher), mb_lm_arch(teacher)->vocab}};
    if (sources[0].folder == NULL || sources[1].folder == NULL) goto done;
    MB_TRY(mb_fuse_vocab_create(sources, 2, &vocab));
    if (!mb_fuse_vocab_is_equal(vocab)) {
        mb_fuse_vocab_report(vocab, sources);
        MB_RAISE(MB_EDATA,
                 "%s, the teacher, has other tokens than %s, the student (%lld of them, the first are in the "
                 "log); a student learns from a teacher of its own vocabulary",
                 mb_lm_base(teacher), mb_lm_base(student), (long long)vocab->only_count);
    }
done:
    mb_fuse_vocab_destroy(&vocab);
    return status;
}

static mb_status open_teacher(mb_program *program, mb_lm **out_teacher)
{
    mb_status status = MB_OK;
    mb_train_program *own = program->own;
    const mb_fuse_options_stage fuse = fused_teacher(own), none = {0};
    mb_model_options model = own->model;
    model.path = own->teacher;
    model.adapter = own->teacher_adapter;
    model.quantize = own->teacher_quantize;
    model.load_in_4bit = model.load_in_8bit = false;
    model.trash_expert_ratio = 0;
    model.router_bias = false;
    const bool is_fused = own->teacher == NULL || mb_fuse_is_folder(own->teacher);
    if (is_fused) model.shard = false;
    if (is_fused && own->model.shard)
        mb_info(
            "the teacher is not cut over the ranks, as the student is: a fused model is whole everywhere");
    MB_TRY(mb_fuse_options_open(own->teacher != NULL ? &none : &fuse, &model, program->ops, "none", NULL, 0,
                                false, out_teacher));
    if (!mb_str_equal(own->teacher_type, "auto") && !mb_str_equal(own->teacher_type, type_of(*out_teacher)))
        MB_RAISE(MB_EUSAGE, "teacher.type = %s, and the teacher that the keys name is %s %s",
                 own->teacher_type, mb_str_equal(type_of(*out_teacher), "ensemble") ? "an" : "a",
                 type_of(*out_teacher));
done:
    return status;
}

mb_status mb_train_teacher_open(mb_program *program, mb_lm *student, mb_lm **out_teacher)
{
    mb_status status = MB_OK;
    mb_lm *teacher = NULL;
    if (!mb_train_teacher_is_online(program->own)) return MB_OK;
    MB_TRY(mb_comm_agree(program->comm, open_teacher(program, &teacher)));
    MB_TRY(mb_comm_agree(program->comm, check_vocabulary(student, teacher)));
    *out_teacher = teacher;
    teacher = NULL;
done:
    mb_lm_destroy(&teacher);
    return status;
}
