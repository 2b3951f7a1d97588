/* template: chat templates as data files; a dialog becomes one text with the byte ranges that are to be
 * learnt.
 *
 * Layer: text.  Uses: base, dialog.
 *
 * A template file is JSON: name, a piece of text per role before and after its content, default system text,
 * what starts and ends the whole, whether the end-of-turn (and what stands behind it) belongs to the answer's
 * loss, hashes of the jinja templates it equals. Shipped: plain (texts joined, nothing added), lines (one
 * line feed between), alpaca, alpaca-lf, chatml, qwen2.5, qwen3, qwen3-train, llama3, llama3.1, llama2, tulu,
 * tulu3, olmoe. Files: `conf/template/<name>.json`; their keys stand in template_file.h with their meaning.
 * Source: the chat templates published with Qwen2.5, Qwen3, Llama-2-chat, Llama-3/3.1/3.2-Instruct, Tulu 2
 * and 3, OLMoE-Instruct; prompt of tatsu-lab/stanford_alpaca.
 */
#ifndef MB_TEMPLATE_H
#define MB_TEMPLATE_H

#include <stdint.h>

#include "text/dialog.h"

typedef struct mb_template mb_template;

/* name_or_path: a shipped name (looked up in folder) or a path to a .json file. MB_ENOTFOUND lists the
 * shipped names. */
mb_status mb_template_open(const char *folder, const char *name_or_path, mb_template **out_template);
void mb_template_close(mb_template **tmpl);
const char *mb_template_name(const mb_template *tmpl);
/* Content hash, for cache keys and provenance (of all that changes a rendered text). */
const char *mb_template_hash(const mb_template *tmpl);
/* The shipped template that renders as this jinja text does: its name (mb_free), or NULL when none is known.
 */
mb_status mb_template_find_by_jinja(const char *folder, const char *jinja_text, char **out_name);

/* A rendered record. ranges: 2 values per range (first byte, end byte) that count in the loss, ascending,
 * apart from each other. A token counts when the bytes it came from overlap a range (a space before an answer
 * may be in the answer's first token). */
typedef struct mb_rendered {
    mb_str text;
    int64_t *ranges;
    int64_t range_count;
    int64_t range_capacity;
} mb_rendered;
void mb_rendered_destroy(mb_rendered *rendered);

/* Render; learn_all: everything counts in the loss (dataset.loss_on = "all"), else answers and plain text
 * only. A dialog with only MB_ROLE_TEXT turns is rendered as is by every template. eos_text (may be NULL:
 * nothing) replaces "{eos}" in the file, bos_text "{bos}". rendered (zeroed at first) is reused.
 * MB_EUNSUPPORTED: the template has no place for a role or for tools of the dialog. */
mb_status mb_template_render(const mb_template *tmpl, const mb_dialog *dialog, bool learn_all,
                             const char *opt_bos_text, const char *opt_eos_text, mb_rendered *rendered);
/* A dialog that ends with a question, and behind it what begins an answer (jinja's add_generation_prompt); no
 * ranges. */
mb_status mb_template_render_prompt(const mb_template *tmpl, const mb_dialog *dialog,
                                    const char *opt_bos_text, const char *opt_eos_text,
                                    mb_rendered *rendered);

#endif
