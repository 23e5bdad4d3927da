package tpm

import (
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/hsmtest"
)

func BenchmarkSign(b *testing.B) {
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.RSA3072, backend.P256, backend.P384} {
		b.Run(kind.String(), func(b *testing.B) {
			k, _ := create(b, open(b, hsmtest.TPM(b), 0), backend.Spec{KeyType: kind})
			for b.Loop() {
				if err := sign(b.Context(), k); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecrypt(b *testing.B) {
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.RSA3072} {
		b.Run(kind.String(), func(b *testing.B) {
			k, _ := create(b, open(b, hsmtest.TPM(b), 0), backend.Spec{KeyType: kind, Decrypt: true})
			for b.Loop() {
				if err := unwrap(b.Context(), k); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Three keys in turn: each use has to load one.
func BenchmarkRotation(b *testing.B) {
	tpm := open(b, hsmtest.TPM(b), 0)
	var keys []*backend.Key
	for range 3 {
		k, _ := create(b, tpm, backend.Spec{})
		keys = append(keys, k)
	}
	for i := 0; b.Loop(); i++ {
		if err := sign(b.Context(), keys[i%3]); err != nil {
			b.Fatal(err)
		}
	}
}
