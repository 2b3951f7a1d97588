/* lane_tree: the stack machine of lane_tree.h. */
#include "comm/lane_tree.h"

static mb_lane_node pass_through(mb_lane_node node, int64_t lanes)
{
    while (node.index > 0 && node.index % 2 == 0 && (node.index + 1) << node.level >= lanes) {
        node.level++;
        node.index /= 2;
    }
    return node;
}

int mb_lane_tree_push(mb_lane_tree *tree, mb_lane_node node)
{
    int merges = 0;
    for (node = pass_through(node, tree->lanes); tree->depth > 0 && node.index % 2 == 1; merges++) {
        const mb_lane_node left = tree->node[tree->depth - 1];
        if (left.level != node.level || left.index != node.index - 1) break;
        tree->depth--;
        node = pass_through((mb_lane_node){node.level + 1, node.index / 2}, tree->lanes);
    }
    tree->node[tree->depth++] = node;
    return merges;
}

int mb_lane_tree_fill(mb_lane_tree *tree, int64_t lanes, int64_t first, int64_t count)
{
    int most = 0;
    *tree = (mb_lane_tree){.lanes = lanes};
    for (int64_t lane = first; lane < first + count; lane++) {
        if (tree->depth + 1 > most) most = tree->depth + 1;
        mb_lane_tree_push(tree, (mb_lane_node){0, lane});
    }
    return most;
}

void mb_lane_tree_sum(double *values, int64_t lanes, int64_t width)
{
    for (int64_t step = 1; step < lanes; step *= 2)
        for (int64_t lane = 0; lane + step < lanes; lane += 2 * step)
            for (int64_t i = 0; i < width; i++) values[lane * width + i] += values[(lane + step) * width + i];
}
