#pragma once
// Evaluates the instructions that fastkl._sampler_trace recorded: a sampler's coefficients from a candidate's levels.
//
// Every thread is at the same instruction; registers have the candidates side by side. Functions are the compiler's, right
// to a unit or two in the last place also at 0 and inf.
#include "arithmetic.cuh"

constexpr int64 INSTRUCTION = 5;  // operation, result, three operands

enum Operation {
    LEVEL, WRITE, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER, SQRT, EXP, EXPM1, LOG, LOG1P, HYPOT, MAXIMUM, MINIMUM, ABSOLUTE,
    WHERE, ISINF, ISFINITE, LESS, LESS_EQUAL, LOGICAL_AND
};

constexpr double LARGEST_DOUBLE = 1.7976931348623157e308;

DEVICE double apply(int64 operation, double a, double b, double c) {
    switch (operation) {
        case ADD: return a + b;
        case SUBTRACT: return a - b;
        case MULTIPLY: return a * b;
        case DIVIDE: return a / b;
        case POWER: return pow(a, b);
        case SQRT: return sqrt(a);
        case EXP: return exp(a);
        case EXPM1: return expm1(a);
        case LOG: return log(a);
        case LOG1P: return log1p(a);
        case HYPOT: return hypot(a, b);
        case MAXIMUM: return a != a || a > b ? a : b;  // a NaN stays one, as with NumPy
        case MINIMUM: return a != a || a < b ? a : b;
        case ABSOLUTE: return fabs(a);
        case WHERE: return a != 0.0 ? b : c;
        case ISINF: return fabs(a) > LARGEST_DOUBLE ? 1.0 : 0.0;
        case ISFINITE: return fabs(a) <= LARGEST_DOUBLE ? 1.0 : 0.0;
        case LESS: return a < b ? 1.0 : 0.0;
        case LESS_EQUAL: return a <= b ? 1.0 : 0.0;
        default: return a != 0.0 && b != 0.0 ? 1.0 : 0.0;  // LOGICAL_AND
    }
}

// Run the instructions for one candidate; registers and out (outputs, M) from its column on.
DEVICE void run_instructions(const double *levels, const int64 *code, const double *constants, int64 count, int64 stride,
                             double *registers, double *out) {
    ROLLED for (int64 i = 0; i < count; i++) {
        const int64 *instruction = code + i * INSTRUCTION;
        int64 operation = instruction[0], result = instruction[1], first = instruction[2];
        if (operation == LEVEL) {
            registers[result * stride] = levels[first];
            continue;
        }
        double operands[3];
        UNROLL for (int k = 0; k < 3; k++) {
            int64 at = instruction[2 + k];
            operands[k] = at < 0 ? constants[-1 - at] : registers[at * stride];
        }
        if (operation == WRITE) {
            out[result * stride] = operands[0];
        } else {
            registers[result * stride] = apply(operation, operands[0], operands[1], operands[2]);
        }
    }
}
