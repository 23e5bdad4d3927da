package challenge

// QuickHash is Hash with as few iterations as are admitted. Under the race detector each costs
// a hundred times as much.
func QuickHash(secret string) string {
	return encodeHash(secret, randomKey(), minIterations)
}
