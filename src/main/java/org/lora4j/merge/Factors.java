package org.lora4j.merge;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.merge.Matrices.Tile;
import org.lora4j.merge.TensorEdit.Update;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/** The tensors of adapters that one tensor of a checkpoint needs, in memory while it is worked on. */
final class Factors implements AutoCloseable {
    private final List<AdapterSource> adapters;
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();

    Factors(List<AdapterSource> adapters) {
        this.adapters = adapters;
    }

    /** Reads a tensor of an adapter, if it is not there yet. */
    void load(int adapter, String key) throws IOException {
        String id = adapter + " " + key;
        if (!tensors.containsKey(id)) {
            tensors.put(id, Tensors.keep(adapters.get(adapter).load(key)));
        }
    }

    void load(List<Update> updates) throws IOException {
        for (Update update : updates) {
            load(update.adapter(), update.a());
            load(update.adapter(), update.b());
        }
    }

    Tensor get(int adapter, String key) {
        return Objects.requireNonNull(tensors.get(adapter + " " + key));
    }

    List<LowRank> lowRanks(List<Update> updates, Tile tile) {
        List<LowRank> list = new ArrayList<>();
        for (Update update : updates) {
            list.add(lowRank(update, tile));
        }
        return list;
    }

    /** The part of an update that a tile gets: of the stored matrix, so of the transposed product where it is (in, out). */
    LowRank lowRank(Update update, Tile tile) {
        Tensor a = matrixA(update, tile.matrix());
        Tensor b = matrixB(update, tile.matrix());
        Tensor left = update.swapped() ? a.t() : b;
        Tensor right = update.swapped() ? b.t() : a;
        return new LowRank(
                right.narrow(1, tile.column(), tile.columns()),
                left.narrow(0, update.firstRow() + tile.row(), tile.rows()),
                update.scale());
    }

    /** A (r, in) of one matrix: of stacked experts each has r rows of its own. */
    Tensor matrixA(Update update, long matrix) {
        Tensor a = get(update.adapter(), update.a());
        Tensor flat = a.dim() == 2 ? a : a.flatten(1, -1);
        long expert = update.expert() < 0 ? matrix : update.expert();
        return update.experts() == 1 ? flat : flat.narrow(0, expert * update.rank(), update.rank());
    }

    /** B (out, r) of one matrix: of stacked experts each has every experts-th column. */
    Tensor matrixB(Update update, long matrix) {
        Tensor b = get(update.adapter(), update.b());
        Tensor flat = b.dim() == 2 ? b : b.flatten(1, -1);
        long expert = update.expert() < 0 ? matrix : update.expert();
        return update.experts() == 1
                ? flat
                : flat.view(flat.size(0), update.rank(), update.experts()).select(2, expert);
    }

    @Override
    public void close() {
        tensors.values().forEach(Tensor::close);
        tensors.clear();
    }
}
