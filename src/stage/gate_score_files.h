/* gate_score_files: what a gate is worth, as text, JSON and HDF5.
 *
 * Layer: stage.  Uses: gate_score, store (h5).
 *
 * report.h5, format "moebatch-gate-report" version 1 (S systems, G groups, Q questions, X experts):
 *   /systems [S], /groups [G], /experts [X]
 *   /accuracy, /accuracy_low, /accuracy_high f64 [S, G]   shares of the questions answered right
 *   /gain, /gain_low, /gain_high f64 [S, G]               accuracy less that of best_single, paired
 *   /size i64 [G]                                         questions of the group
 *   /correct f32 [Q, S]                                   1, 0 or an expectation
 *   /picks, /weight f64 [G, X]                            share of the gate's first choices; mean gate weight
 *   /reliability f64 [15, 3]                              rows, mean confidence, mean target of each bin
 *   attributes: format, version, questions, gate (hashes), best_single (the expert's name), nll, ece, draws,
 *   seed, level
 */
#ifndef MB_GATE_SCORE_FILES_H
#define MB_GATE_SCORE_FILES_H

#include "base/json.h"
#include "stage/gate_score.h"

/* Append tables: accuracies and gains of all systems on all questions, then the main systems by group. */
mb_status mb_gate_score_files_text(const mb_gate_score *score, const mb_outputs *test, mb_str *text);
mb_status mb_gate_score_files_json(const mb_gate_score *score, const mb_outputs *test, json_t **out_json);
mb_status mb_gate_score_files_h5(const mb_gate_score *score, const mb_outputs *test, const char *path);

#endif
