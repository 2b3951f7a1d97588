/* lane_tree: the fixed binary tree over lanes as a stack machine. Private to this folder.
 *
 * Layer: comm.  Uses: nothing.
 *
 * Node (level, i) = node(level-1, 2i) + node(level-1, 2i+1); a node whose right sibling would hold no lane is
 * passed through to its parent. Pushing nodes from left to right merges what can be merged, so the stack
 * after lanes 0..n-1 is the same however they were grouped.
 */
#ifndef MB_LANE_TREE_H
#define MB_LANE_TREE_H

#include <stdint.h>

#define MB_LANE_TREE_DEPTH 64

typedef struct mb_lane_node {
    int level;
    int64_t index;
} mb_lane_node;

typedef struct mb_lane_tree {
    int64_t lanes;
    int depth;
    mb_lane_node node[MB_LANE_TREE_DEPTH];
} mb_lane_tree;

/* Push a node right of all others. Returns how many nodes below it it was merged with, each time as right
 * child: the depth falls by that many. */
int mb_lane_tree_push(mb_lane_tree *tree, mb_lane_node node);
/* Stack after lanes [first, first + count) alone; returns the most nodes held at a time, the lane being
 * filled among them. */
int mb_lane_tree_fill(mb_lane_tree *tree, int64_t lanes, int64_t first, int64_t count);
/* values[lanes][width]: the sum over lanes by the tree ends in values[0]. */
void mb_lane_tree_sum(double *values, int64_t lanes, int64_t width);

#endif
