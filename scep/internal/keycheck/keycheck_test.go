package keycheck

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"
)

func BenchmarkRSA2048(b *testing.B) {
	k, _ := rsa.GenerateKey(rand.Reader, 2048)
	rsaTables()
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(&k.PublicKey, 2048, 8192); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkP256(b *testing.B) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for b.Loop() {
		if err := Check(&k.PublicKey, 2048, 8192); err != nil {
			b.Fatal(err)
		}
	}
}
