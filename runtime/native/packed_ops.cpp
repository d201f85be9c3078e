// Packed matrices as operations of the OpenVINO CPU plugin. Matrices are known by number, not as inputs: the plugin then
// neither copies them nor looks at their shapes in every step.

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"
#include "packed_matrices.hpp"
#include "packed_product.hpp"

using namespace shardyard;

namespace {

// Entries stay where they are for as long as the process lives; their numbers belong to whoever added them.
class Matrices {
public:
    std::int64_t add(const PackedMatrix& matrix) {
        const std::lock_guard<std::mutex> lock(mutex_);
        known_.push_back(matrix);
        return static_cast<std::int64_t>(known_.size()) - 1;
    }

    const PackedMatrix& at(std::int64_t number) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return known_.at(number);
    }

private:
    mutable std::mutex mutex_;
    std::deque<PackedMatrix> known_;
};

Matrices matrices;

// x [.., columns] → [.., rows].
class PackedMatMul : public ov::op::Op {
public:
    OPENVINO_OP("PackedMatMul", "shardyard");

    PackedMatMul() = default;
    PackedMatMul(const ov::Output<ov::Node>& x, const PackedMatMul& other)
        : Op({x}), matrix_(other.matrix_), gate_(other.gate_), activation_(other.activation_), level_(other.level_) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        auto shape = get_input_partial_shape(0);
        shape[shape.size() - 1] = static_cast<std::int64_t>(known_matrix(matrix_).rows);
        set_output_type(0, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<PackedMatMul>(inputs.at(0), *this);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrix", matrix_);
        visitor.on_attribute("gate", gate_);
        visitor.on_attribute("activation", activation_);
        visitor.on_attribute("level", level_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const PackedMatrix& matrix = known_matrix(matrix_);
        ov::Shape shape = inputs[0].get_shape();
        const std::size_t tokens = inputs[0].get_size() / matrix.columns;
        shape.back() = matrix.rows;
        outputs[0].set_shape(shape);
        multiply(matrix, gate_ < 0 ? nullptr : &known_matrix(gate_), static_cast<Activation>(activation_),
                 static_cast<Level>(level_), inputs[0].data<const float>(), tokens, outputs[0].data<float>());
        return true;
    }

private:
    std::int64_t matrix_ = 0, gate_ = -1, activation_ = 0, level_ = 0;
};

// ids, int32 [tokens] → rows of the matrix, float32 [tokens, columns].
class PackedRows : public ov::op::Op {
public:
    OPENVINO_OP("PackedRows", "shardyard");

    PackedRows() = default;
    PackedRows(const ov::Output<ov::Node>& ids, std::int64_t matrix) : Op({ids}), matrix_(matrix) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        auto shape = get_input_partial_shape(0);
        shape.push_back(static_cast<std::int64_t>(known_matrix(matrix_).columns));
        set_output_type(0, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<PackedRows>(inputs.at(0), matrix_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrix", matrix_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const PackedMatrix& matrix = known_matrix(matrix_);
        const std::size_t tokens = inputs[0].get_size();
        outputs[0].set_shape({tokens, matrix.columns});
        const auto* ids = inputs[0].data<const std::int32_t>();
        float* y = outputs[0].data<float>();
        for (std::size_t t = 0; t < tokens; ++t) {
            if (ids[t] < 0 || static_cast<std::size_t>(ids[t]) >= matrix.rows) {
                throw std::out_of_range("no such row in the embedding table: " + std::to_string(ids[t]));
            }
            unpack_row(matrix, ids[t], y + t * matrix.columns);
        }
        return true;
    }

private:
    std::int64_t matrix_ = 0;
};

}  // namespace

const PackedMatrix& shardyard::known_matrix(std::int64_t number) { return matrices.at(number); }

ov::Extension::Ptr shardyard::packed_matmul_extension() { return std::make_shared<ov::OpExtension<PackedMatMul>>(); }

ov::Extension::Ptr shardyard::packed_rows_extension() { return std::make_shared<ov::OpExtension<PackedRows>>(); }

extern "C" {

int shardyard_level() { return static_cast<int>(best_level()); }

// The memory must live as long as the models that use the matrix.
std::int64_t shardyard_add_matrix(const void* numbers, const float* scales, std::size_t rows, std::size_t columns,
                                  std::int64_t kind) {
    return matrices.add({static_cast<const std::uint8_t*>(numbers), scales, rows, columns, static_cast<Kind>(kind)});
}
}
