/* config: a libconfig study file plus key=value overrides -> option structs.
 *
 * Layer: config.  Uses: base, libconfig.  Only `stage` includes this.
 *
 * A study file has one group per stage instance (`warmup: {...}; score: {...};`); groups at the top named
 * like a key's first part (`model`, `dataset`, `training`, `score`, ...) are defaults for all stages.
 * Precedence, low to high: table default, top-level group, the stage's group (which holds the same key tree:
 * warmup: { training: {...} }), command line (keys relative to the stage). A top-level group that is not a
 * key prefix is another stage's and is not checked here (mb_config_groups lists them). `@include "file"` is
 * relative to the including file; at the top level its settings are overridden by those of the including
 * file, key by key.
 *
 * A stage may be named like a key's first part (stage score, keys score.*): within its group, and on its
 * command line, that part may be left out; read as defaults by another stage, the group's keys count and its
 * tree of other keys does not.
 */
#ifndef MB_CONFIG_H
#define MB_CONFIG_H

#include "base/option.h"

typedef struct mb_config mb_config;

/* opt_path: study file, NULL for none. opt_stage: the stage's group, NULL for none; MB_EUSAGE with the
 * nearest group when it is missing. Parse errors say file and line. */
mb_status mb_config_open(const char *opt_path, const char *opt_stage, mb_config **out_config);
void mb_config_close(mb_config **config);

/* One "key=value" (or "key=" to unset: NULL for strings, the table's default for numbers) from the command
 * line; later ones win. */
mb_status mb_config_override(mb_config *config, const char *assignment);

/* Fill n tables: defaults, file, overrides. Unknown keys are MB_EUSAGE with file, line (or "command line")
 * and nearest valid name; aliases are accepted and reported once by mb_info; a missing required key is
 * MB_EUSAGE. `known_prefixes`: first key parts of ALL programs ("model|dataset|training|score|select|..."),
 * so that a top-level group another program reads is accepted; a top-level group that is nearly one of them
 * and no stage's is warned about. opt_others: tables of all programs; a default at the top level may name one
 * of their keys, which is then passed over (a stage's own group and the command line may not). Call
 * mb_option_free on the tables after a failure too. */
mb_status mb_config_apply(mb_config *config, mb_option_table *tables, int64_t n, const char *known_prefixes,
                          const mb_option_table *opt_others, int64_t others);

/* The resolved configuration of n filled tables as JSON text ({"training.learning_rate": "1e-4", ...}, key
 * order), and as printed by --print-config (key = value   # help). */
mb_status mb_config_resolved(const mb_option_table *tables, int64_t n, json_t **out_json);
mb_status mb_config_print(const mb_option_table *tables, int64_t n, mb_str *s);

/* Names of the top-level groups of the file, comma separated. */
mb_status mb_config_groups(const mb_config *config, mb_str *s);

/* The value of any key as text, without a table: command line, stage group, top level. Groups and lists as
 * JSON. MB_ENOTFOUND. For scripts (moe-config get). */
mb_status mb_config_text(const mb_config *config, const char *key, mb_str *s);

#endif
