/* clock: time since start, and dates for provenance.
 *
 * Layer: base.
 */
#ifndef MB_CLOCK_H
#define MB_CLOCK_H

double mb_clock_seconds(void);        /* monotonic */
void mb_clock_iso(char out_text[32]); /* 2026-01-31T12:00:00Z */

#endif
