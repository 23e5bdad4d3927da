package keycheck

import (
	"math/big"
	"sync"
)

const (
	mostFactor   = 751 // the greatest prime that is tried as a factor
	mostROCA     = 167 // the greatest prime in M of the shortest ROCA keys
	fermatRounds = 100
)

// tables holds what is known beforehand of RSA moduli. It is never changed.
type tables struct {
	product *big.Int // of the odd primes up to mostFactor

	// coset has, for odd primes up to mostROCA, which residues are powers of 65537.
	coset []coset

	// square[i][r] says whether r is a square modulo moduli[i].
	square [len(moduli)][]bool
}

// A coset is a proper subgroup of the residues modulo a prime.
type coset struct {
	prime uint64
	in    [mostROCA + 1]bool
}

// moduli filter squares: about one number of 1600 is a square modulo all of them.
// They are coprime, and their product fits 63 bits.
var moduli = [...]uint64{64, 63, 65, 11, 17, 19, 23, 31}

// modulus is the product of moduli.
const modulus = 64 * 63 * 65 * 11 * 17 * 19 * 23 * 31

// rsaTables returns the tables, made at first use.
var rsaTables = sync.OnceValue(func() *tables {
	t := &tables{product: big.NewInt(1)}
	for p := uint64(3); p <= mostFactor; p += 2 {
		if !isPrime(p) {
			continue
		}
		t.product.Mul(t.product, new(big.Int).SetUint64(p))
		if p > mostROCA {
			continue
		}
		c, size := coset{prime: p}, uint64(0)
		for x := uint64(1); !c.in[x]; x = x * 65537 % p {
			c.in[x] = true
			size++
		}
		if size < p-1 { // otherwise every residue is a power, which tells nothing
			t.coset = append(t.coset, c)
		}
	}
	for i, m := range moduli {
		t.square[i] = make([]bool, m)
		for x := range m {
			t.square[i][x*x%m] = true
		}
	}
	return t
})

func isPrime(p uint64) bool {
	for d := uint64(2); d*d <= p; d++ {
		if p%d == 0 {
			return false
		}
	}
	return true
}

// residue returns n modulo all small primes at once: what follows is done on that.
func (t *tables) residue(n *big.Int) *big.Int { return new(big.Int).Rem(n, t.product) }

// smallFactor reports whether the modulus with this residue is divisible by an odd prime up to
// mostFactor.
func (t *tables) smallFactor(residue *big.Int) bool {
	return new(big.Int).GCD(nil, nil, residue, t.product).BitLen() != 1
}

// roca reports whether the modulus with this residue looks like the product of two primes of the
// form k·M + (65537^a mod M), M being the product of the first primes: then it is a power of
// 65537 modulo every one of those. One good modulus of 2^27 does so too.
//
// M. Nemec and others, "The Return of Coppersmith's Attack", CCS 2017, section 2.
func (t *tables) roca(residue *big.Int) bool {
	var p, r big.Int
	for i := range t.coset {
		c := &t.coset[i]
		if !c.in[r.Rem(residue, p.SetUint64(c.prime)).Uint64()] {
			return false
		}
	}
	return true
}

// closePrimes reports whether Fermat's method factors n within fermatRounds: whether a² - n is a
// square for one of the first a that are not below √n.
func (t *tables) closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	b := new(big.Int).Mul(a, a)
	if b.Cmp(n) < 0 {
		a.Add(a, big.NewInt(1))
		b.Mul(a, a)
	}
	b.Sub(b, n)

	// From here on only residues are needed, until all of them are those of a square.
	// (a+1)² - n = a² - n + 2a + 1.
	m := new(big.Int).SetUint64(modulus)
	r := new(big.Int).Rem(b, m).Uint64()
	step := (2*new(big.Int).Rem(a, m).Uint64() + 1) % modulus
	for i := range int64(fermatRounds) {
		if t.maybeSquare(r) {
			ai := new(big.Int).Add(a, big.NewInt(i))
			bi := ai.Sub(ai.Mul(ai, ai), n)
			root := new(big.Int).Sqrt(bi)
			if root.Mul(root, root).Cmp(bi) == 0 {
				return true
			}
		}
		r = (r + step) % modulus
		step = (step + 2) % modulus
	}
	return false
}

// maybeSquare reports whether a number with this residue modulo modulus can be a square.
func (t *tables) maybeSquare(r uint64) bool {
	for i, m := range moduli {
		if !t.square[i][r%m] {
			return false
		}
	}
	return true
}
